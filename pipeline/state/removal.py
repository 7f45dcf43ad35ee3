"""Remove a run: first HEAD.json says so, then all other files go, then HEAD.json.

One swap of HEAD decides between a removal and a start of the run. From then on every other command
refuses the run, and if the removal is interrupted, another one finishes it. What the runs of a
store share (prepared data, the models they start from) stays.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from dataclasses import dataclass
from shlex import quote
from typing import Any

from pion.errors import BadInput
from pipeline.state.find_run import no_such_run, refuse_other_files, remains
from pipeline.state.head import REMOVING_FORMAT, BeingRemoved, Head
from pipeline.state.notes.rental_note import read_rental_note
from pipeline.state.owner import Owner, is_running
from pipeline.state.record_file import RecordFile
from pipeline.state.record_json import parse_record, to_json
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing
from pipeline.state.stores.base import is_key
from pipeline.state.stores.local import explained
from pipeline.state.workspace import Workspace

# After so many deleted files, look again whether this process is still the one that removes the
# run. If another one finishes first, a new run of this name may begin.
LOOK_EVERY = 50


@dataclass(frozen=True)
class Removable:
    """A run that may be removed, its size, and whether it recorded a model that it started from.

    `version` is that of its HEAD.json; None: it has none.
    """

    run: RunState
    version: str | None
    bytes: int
    has_base: bool


def find_removable(run: RunState, *, take_over: bool = False) -> Removable:
    """Return the run, or what is left of one, if it may be removed.

    Raises BadInput if there is no run or the run's folder is a link, and if a process may own the
    run or a machine is rented for it, unless a person who knows better gives `take_over`; and
    StoreError.
    """
    # What a link leads to may be another run, or files of others outside the store.
    here = run.store.local_path(run.name)
    if here is not None and here.is_symlink():
        target = os.path.realpath(here)
        raise BadInput(
            f"{run.url} is a link to {target}. To remove a run that is there: pion rm "
            f"{quote(target)}. To remove only the link: rm {quote(str(here))}."
        )
    where, version = run.key("HEAD.json"), None
    try:
        data, version = run.store.read_versioned(where)
        head = Head.from_json(data, f"{run.store.url}/{where}")
        if not take_over:
            _refuse_if_at_work(run, head.owner)
    except Missing:  # any folder of this disk can be named as a run
        if not remains(run):
            raise BadInput(no_such_run(run)) from None
        refuse_other_files(run)
        if not take_over:
            _refuse_if_at_work(run, None)
    except BeingRemoved:
        pass
    entries = run.store.list(run.key(""))
    return Removable(
        run,
        version,
        bytes=sum(entry.size for entry in entries),
        has_base=any(entry.key.startswith(run.key("bases/")) for entry in entries),
    )


def remove(found: Removable) -> int:
    """Remove the run; return how many files stay because their names are no keys of a store.

    Raises BadInput if the run has changed since `find_removable`, and StoreError: then another call
    finishes what this one began.
    """
    run, store, head = found.run, found.run.store, found.run.key("HEAD.json")
    file: RecordFile[dict[str, Any]] = RecordFile(
        store, head, parse_record, lambda record: to_json(record).encode()
    )
    mine = {"format": REMOVING_FORMAT, "removing": uuid.uuid4().hex}
    if not file.swap(mine, found.version):
        raise BadInput(
            f"{run.url} was changed by another process in the meantime. This command deleted "
            "nothing of it."
        )

    def check() -> None:
        if file.read_if_readable()[0] != mine:
            raise BadInput(f"Another `pion rm` removes {run.url}. This one has stopped.")

    keys = [entry.key for entry in store.list(run.key("")) if entry.key != head]
    for number, key in enumerate(filter(is_key, keys)):
        if number % LOOK_EVERY == 0:
            check()
        store.delete(key)
    store.flush()
    check()
    _remove_hidden(run)
    Workspace(store, run.name).remove_copies()
    store.sweep_unfinished(run.key(""), time.time())
    left = len(store.list(run.key(""))) - 1
    check()
    store.delete(head)
    store.flush()
    return left


def _refuse_if_at_work(run: RunState, owner: Owner | None) -> None:
    if owner is not None and is_running(owner, Owner.me()) is not False:
        raise BadInput(
            f"{owner.describe()} owns run {run.name}. Stop it first: pion stop {run.url} --wait. "
            "If you know that its machine is gone, add --take-over."
        )
    note, _ = read_rental_note(run)
    if note is not None:
        raise BadInput(
            f"A machine is rented for run {run.name}, from {note.host}. To see it: pion rentals "
            f"{run.url}. To end it: pion stop {run.url}. If you know that it is gone, add "
            "--take-over."
        )


def _remove_hidden(run: RunState) -> None:
    """Delete what is no key in the run's folder, if it is one: lists of files, torn writes, folders
    that were never finished. The lock of HEAD stays, because a start may be waiting for it."""
    here = run.store.local_path(run.name)
    for path in [] if here is None else sorted(here.iterdir()):
        if path.name in ("HEAD.json", ".lock-HEAD.json"):
            continue
        with explained("delete", path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
