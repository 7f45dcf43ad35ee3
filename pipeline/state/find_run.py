"""Find a run by the name that a user gives, list all runs of a store, and find what is left of one.

HEAD.json is the first file of a run, so work without it means that the file was lost, that only a
part of the run was copied, or that a `pion fork` was interrupted. A new run must not overwrite it.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.formats import size
from pipeline.state.head import BeingRemoved, Head
from pipeline.state.liveness import last_change
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, Entry, Store, open_store, split_run
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


# The folders that only an owner of the run, or a fork, writes. A watcher writes events, too, of
# machines that were lost before any of them owned the run.
WORK = ("checkpoints", "metrics", "owner")
# Of so many checkpoints, the names are shown.
SHOWN = 4
# The names of all files that a run keeps in its folder, apart from HEAD.json.
_OURS = re.compile(
    r"checkpoints/[a-z]+/\d+-\d+/.+|metrics/[a-z]+/\d+/.+|owner/\d+\.json|events/\d+/.+"
    r"|requests/[0-9a-f]+\.json|jobs/[0-9a-f]+\.yaml|stages/[a-z]+/[0-9a-f]+(-parts/.+|\.json)"
    r"|data/[0-9a-f]{4,}/.+|bases/[0-9a-f]+\.json|(rental|deadline|watcher)\.json|report\.html"
    r"|probe-[0-9a-f]+|\.(lock|tmp)-.+"
)


def remains(run: RunState, *, but_of_epoch: int | None = None) -> list[Entry]:
    """Return the work that lies in the store under the name of `run`, which has no HEAD.json.

    Work of the epoch `but_of_epoch` does not count, except for an owner's heartbeat.
    """
    # Any folder can be named as a run, so a list of all could be a walk through the disk.
    return [
        entry
        for folder in WORK
        for entry in run.store.list(run.key(f"{folder}/"))
        if _OURS.fullmatch(path := entry.key.removeprefix(run.key("")))
        and (folder == "owner" or _epoch(path) != str(but_of_epoch))
    ]


def refuse_other_files(run: RunState) -> None:
    """Raise BadInput if a file in the folder of a run without HEAD.json has no name of Pion's."""
    names = [entry.key.removeprefix(run.key("")) for entry in run.store.list(run.key(""))]
    here = run.store.local_path(run.name)
    hidden = [] if here is None else [p.name for p in here.iterdir() if p.name.startswith(".")]
    for name in (*names, *sorted(hidden)):
        if not _OURS.fullmatch(name):
            raise BadInput(
                f"{run.url} has no HEAD.json, and {name} there was not written by Pion. Move it "
                "elsewhere, or delete the folder yourself."
            )


def refuse_remains(run: RunState, *, but_of_epoch: int | None = None) -> None:
    """Raise BadInput if there is work of a run that has no HEAD.json; see `remains`."""
    if found := remains(run, but_of_epoch=but_of_epoch):
        raise BadInput(f"{describe_remains(run, found)} Nothing was started or overwritten.")


def describe_remains(run: RunState, found: list[Entry]) -> str:
    """Return what lies there, and the ways out, for a person."""
    paths = [entry.key.removeprefix(run.key("")) for entry in found]
    saved = (path.split("/") for path in paths if path.startswith("checkpoints/"))
    names = sorted({"/".join(parts[1:3]) for parts in saved})
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    others = sorted({path.partition("/")[0] for path in paths} - {"checkpoints"})
    words = [f"checkpoints {', '.join(names[:SHOWN])}{more}"] if names else []
    called = run.name if run.store.url == open_store(DEFAULT_STORE).url else run.url
    return (
        f"{run.url} has no HEAD.json, but work of a run lies there: "
        f"{', '.join(words + others)} ({size(sum(entry.size for entry in found))}). Put HEAD.json "
        "back from a backup, or from where this run was copied; if a `pion fork` was interrupted, "
        f"the same command completes it. Or delete what is left: pion rm {called}. Or use another "
        "name."
    )


def _epoch(path: str) -> str | None:
    """Return the epoch in checkpoints/STAGE/STEP-EPOCH/…, metrics/STAGE/EPOCH/…, events/EPOCH/…"""
    found = re.match(r"checkpoints/[^/]+/\d+-(\d+)/|metrics/[^/]+/(\d+)/|events/(\d+)/", path)
    return next(filter(None, found.groups()), None) if found else None


def known_runs(store: Store) -> str:
    """Return a sentence that names the runs in a store."""
    names = _run_names(store)
    return f"Runs in {store.url}: {', '.join(names)}." if names else f"No runs in {store.url}."


def _run_names(store: Store) -> list[str]:
    folder = store.local_path("")
    if folder is None:
        keys = (entry.key.split("/") for entry in store.list())
        return sorted(name for name, *rest in keys if rest == ["HEAD.json"])
    # A run may be a link to another disk. Only the folder itself is read: any folder can be named
    # as a store, also one with all files of a disk.
    with explained("list", folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if is_run_name(name) and _may_be_run(folder / name)]


def _may_be_run(folder: Path) -> bool:
    try:
        return (folder / "HEAD.json").is_file()
    except PermissionError:  # whoever needs its HEAD says so
        return True
