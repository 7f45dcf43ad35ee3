"""Find a run by the name that a user gives, list all runs of a store, and find what is left of one.

HEAD.json is the first file of a run, so work without it means that the file was lost, that only a
part of the run was copied, or that a `pion fork` was interrupted. A new run must not overwrite it.
"""

from __future__ import annotations

import re
from functools import partial

from pion.errors import BadInput
from pipeline.console.formats import moment, size
from pipeline.state.head import BeingRemoved, Head
from pipeline.state.liveness import last_change
from pipeline.state.notes.rental_note import read_rental_note
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import RunState
from pipeline.state.stores import (
    DEFAULT_STORE,
    Entry,
    Missing,
    Store,
    StoreError,
    open_store,
    split_run,
)
from pipeline.state.stores.base import is_run_name, read_all


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


def runs_in(store: Store, unreadable: dict[str, BadInput] | None = None) -> dict[str, Head]:
    """Return the HEAD of every run in a store, by name, the most recently saved last.

    A run that is being removed is not among them: it uses nothing any more. Puts the error of a
    HEAD that can't be read into `unreadable`, by name; without it, raises the error, a BadInput.
    Makes one request for each name in the store, and one to list a thousand names.
    """

    def read(name: str) -> Head | None:
        try:
            return RunState(store, name).read()
        except BeingRemoved:
            return None
        except BadInput as error:
            if unreadable is None:
                raise
            unreadable[name] = error
            return None

    names = _names_of_folders(store)
    present = [(name, head) for name, head in zip(names, read_all(read, names)) if head is not None]
    return dict(sorted(present, key=lambda item: (last_change(item[1]), item[0])))


def no_such_run(state: RunState) -> str:
    """Return the message that there is no such run: what is left of one, the machines that are
    rented for it, or the existing runs."""
    if leftovers := remains(state):
        return describe_remains(state, leftovers)
    rental, _ = read_rental_note(state)
    if rental is not None:
        return (
            f"no machine has begun the run {state.name!r} yet. Machines are rented for it from "
            f"{rental.host} since {moment(rental.at)}. How far they are: pion watch {state.url}"
        )
    return f"no run {state.name!r} in the store {state.store.url}. {known_runs(state.store)}"


# The folders that only an owner of the run, or a fork, writes. A watcher writes events, too, of
# machines that were lost before any of them owned the run.
WORK = ("checkpoints", "metrics", "owner")
# Of so many checkpoints, the names are shown.
SHOWN = 4
# Of so many folders of a store, a message says which are runs.
NAMED = 50
# The names of all files that a run keeps in its folder, apart from HEAD.json.
_OURS = re.compile(
    r"checkpoints/[a-z]+/\d+-\d+/.+|metrics/[a-z]+/\d+/.+|owner/\d+\.json|events/\d+/.+"
    r"|requests/[0-9a-f]+\.json|jobs/[0-9a-f]+\.yaml|stages/[a-z]+/[0-9a-f]+(-parts/.+|\.json)"
    r"|data/[0-9a-f]{4,}/.+|inputs/([0-9a-f]{64}|files\.json)|bases/[0-9a-f]+\.json"
    r"|(rental|deadline|watcher)\.json|report\.html|probe-[0-9a-f]+|\.(lock|tmp)-.+"
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
    if leftovers := remains(run, but_of_epoch=but_of_epoch):
        raise BadInput(f"{describe_remains(run, leftovers)} Nothing was started or overwritten.")


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
    match = re.match(r"checkpoints/[^/]+/\d+-(\d+)/|metrics/[^/]+/(\d+)/|events/(\d+)/", path)
    return next(filter(None, match.groups()), None) if match else None


def known_runs(store: Store) -> str:
    """Return a sentence that names the runs in a store, or the first of many; or that there is too
    much else."""
    try:
        names = _names_of_folders(store)
    except BadInput as error:
        return str(error)
    looked = names[:NAMED]
    answers = read_all(partial(_may_be_run, store), looked)
    runs = [name for name, is_run in zip(looked, answers) if is_run]
    more = len(names) - len(looked)
    if not runs and not more:
        return f"No runs in {store.url}."
    others = [f"and {more:,} other folders"] if more else []
    return f"Runs in {store.url}: {', '.join(runs + others)}."


def _names_of_folders(store: Store) -> list[str]:
    """Return the folders of a store that may be those of runs. Any folder can be named as a store,
    so there may be others."""
    return [name for name in store.folders() if is_run_name(name)]


def _may_be_run(store: Store, name: str) -> bool:
    try:
        store.read(f"{name}/HEAD.json")
    except Missing:
        return False
    except (Damaged, StoreError):  # whoever needs its HEAD says so
        return True
    return True
