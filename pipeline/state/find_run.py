"""Find a run by the name that a user gives, and list all runs of a store."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pion.errors import BadInput
from pipeline.state.liveness import last_change
from pipeline.state.records import BeingRemoved, Head
from pipeline.state.remains import describe_remains, remains
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store, split_run
from pipeline.state.stores.base import is_run_name
from pipeline.state.stores.local import explained


def read_run(run: str) -> tuple[RunState, Head]:
    """Return a run and its HEAD.

    `run` is `<store>/<name>`, a name in the default store, or the path of the run's folder. Raises
    BadInput, naming the existing runs, if there is no such run, and StoreError.
    """
    state = open_run(run)
    head = state.read()
    if head is None:
        raise BadInput(no_such_run(state))
    return state, head


def open_run(run: str) -> RunState:
    """Return the run of that name, which may not exist. Raises BadInput for an illegal name."""
    url, name = split_run(run)
    return RunState(open_store(url), name)


def runs_in(store: Store) -> dict[str, Head]:
    """Return the HEAD of every run in a store, by name, the most recently saved last.

    A run that is being removed is not among them: it uses nothing any more.
    """
    present = {}
    for name in _run_names(store):
        with contextlib.suppress(BeingRemoved):
            if (head := RunState(store, name).read()) is not None:
                present[name] = head
    return dict(sorted(present.items(), key=lambda item: (last_change(item[1]), item[0])))


def no_such_run(state: RunState) -> str:
    """Return the message that there is no such run: what is left of one, or the existing runs."""
    if found := remains(state):
        return describe_remains(state, found)
    return f"no run {state.name!r} in the store {state.store.url}. {known_runs(state.store)}"


def known_runs(store: Store) -> str:
    """Return a sentence that names the runs in a store."""
    names = _run_names(store)
    return f"Runs in {store.url}: {', '.join(names)}." if names else f"No runs in {store.url}."


def _run_names(store: Store) -> list[str]:
    if (folder := store.local_path("")) is not None:
        return _run_folders(folder)
    keys = (entry.key.split("/") for entry in store.list())
    return sorted(name for name, *rest in keys if rest == ["HEAD.json"])


def _run_folders(store: Path) -> list[str]:
    """Return the runs of a store in a folder; a run may be a link to another disk. Only the folder
    itself is read: any folder can be named as a store, also one with all files of a disk."""
    with explained("list", store):
        names = sorted(path.name for path in store.iterdir()) if store.is_dir() else []
    return [name for name in names if is_run_name(name) and _may_be_run(store / name)]


def _may_be_run(folder: Path) -> bool:
    try:
        return (folder / "HEAD.json").is_file()
    except PermissionError:  # whoever needs its HEAD says so
        return True
