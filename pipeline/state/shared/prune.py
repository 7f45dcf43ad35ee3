"""List the shared data of a store, and delete what no run uses, an hour after it was marked.

Each step that can't be taken back is one swap of `state.json`, prepared in this order: read the
state, read the HEAD of every run, swap the state that was read. A run that begins to use the data
meanwhile has either committed its HEAD before it was read here, or it reads the state after the
swap (`find_or_prepare.confirm`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pion.files import is_sha256
from pipeline.state.find_run import runs_in
from pipeline.state.head import SHARED, TRASH_SECONDS, data_key, is_data_key
from pipeline.state.owner import Owner
from pipeline.state.shared.find_or_prepare import preparing
from pipeline.state.shared.folder import delete_folder
from pipeline.state.shared.records import (
    DELETED_KEPT,
    DataState,
    Unneeded,
    change_state,
    keys_in_use,
    read_state,
    swap_state,
)
from pipeline.state.stores import Store
from pipeline.state.stores.base import read_all
from pipeline.state.stores.clock import Clock, StoreClock


@dataclass(frozen=True)
class Listed:
    """The shared data with one fingerprint.

    Attributes:
        runs: the runs whose HEAD lists a folder of it.
        bytes: the size of all its files in the store.
        unused: the size of those in folders that no run uses.
        prepared_by: the run that is preparing it now; None: no run is.
    """

    fingerprint: str
    state: DataState
    runs: tuple[str, ...]
    bytes: int
    unused: int
    prepared_by: str | None = None


def list_shared(store: Store, clock: Clock) -> list[Listed]:
    """Return the shared data of a store, the newest last. Raises BadInput for a damaged record."""
    stored = _stored_folders(store)
    users = keys_in_use(runs_in(store))
    me = Owner.me()

    def look(item: tuple[str, Mapping[str, int]]) -> Listed | None:
        fingerprint, sizes = item
        state, _ = read_state(store, fingerprint)
        by_folder = {folder: users.get(data_key(fingerprint, folder), ()) for folder in sizes}
        writer = preparing(store, state, me, clock)
        if not sizes and writer is None:
            return None
        return Listed(
            fingerprint,
            state,
            tuple(sorted({run for using in by_folder.values() for run in using})),
            bytes=sum(sizes.values()),
            unused=sum(sizes[folder] for folder, using in by_folder.items() if not using),
            prepared_by=None if writer is None else writer.run,
        )

    shared_items = [shared for shared in read_all(look, list(stored.items())) if shared is not None]
    return sorted(shared_items, key=lambda item: (item.state.at, item.fingerprint))


def mark(store: Store, fingerprints: Iterable[str], clock: Clock) -> list[str]:
    """Mark all data that no run uses for deletion in an hour; return the fingerprints.

    Data that was marked before is not marked again. Folders that an interrupted process left are
    marked with it. Raises BadInput if the HEAD of a run can't be read.
    """
    new: set[str] = set()
    # By the store's clock, because another machine deletes it.
    after = StoreClock(clock, store).now() + TRASH_SECONDS

    def marked(fingerprint: str, state: DataState, used: Used) -> DataState:
        # In this order: a folder that is complete and listed after the state was read is newer.
        folders = _stored_folders(store, fingerprint).get(fingerprint, {})
        result = state
        folder = state.folder if state.delete_after is None else None
        if folder is not None and data_key(fingerprint, folder) not in used():
            result = dataclasses.replace(result, delete_after=after)
        folders_known = {state.folder, *(item.folder for item in state.unneeded)}
        writer = preparing(store, state, Owner.me(), clock)
        if writer is not None:
            folders_known.add(writer.folder)
        left = (
            f for f in folders if f not in folders_known and data_key(fingerprint, f) not in used()
        )
        unneeded = (*state.unneeded, *(Unneeded(folder, after) for folder in left))
        result = dataclasses.replace(result, writer=writer, unneeded=unneeded)
        if result != dataclasses.replace(state, writer=writer):
            new.add(fingerprint)
        else:
            new.discard(fingerprint)
        return result

    fingerprints = list(fingerprints)
    _change_all(store, fingerprints, marked)
    return [fingerprint for fingerprint in fingerprints if fingerprint in new]


def delete_due(store: Store, clock: Clock) -> tuple[list[str], int]:
    """Delete the marked data whose hour has passed and that no run uses by now.

    Data that a run uses by now is no longer marked. Returns the fingerprints and the bytes.
    Raises BadInput if the HEAD of a run can't be read; then nothing is deleted.
    """
    stored, now = _stored_folders(store), StoreClock(clock, store).now()

    states = _change_all(store, list(stored), partial(_let_go_if_unused, now))
    # No run can begin to use these. One that used an older folder of the data keeps it.
    due = {f: [u.folder for u in states[f].unneeded if u.not_before <= now] for f in stored}
    used = keys_in_use(runs_in(store)) if any(due.values()) else {}
    deleted, size = [], 0
    for fingerprint, folders in due.items():
        gone = [folder for folder in folders if data_key(fingerprint, folder) not in used]
        for folder in gone:
            delete_folder(store, fingerprint, folder)
            size += stored[fingerprint].get(folder, 0)
        if folders:
            change_state(store, fingerprint, partial(_forget, folders))
        if gone:
            deleted.append(fingerprint)
    return deleted, size


# The keys of the shared folders that runs use, with these runs.
Used = Callable[[], Mapping[str, Sequence[str]]]


def _change_all(
    store: Store,
    fingerprints: Sequence[str],
    change: Callable[[str, DataState, Used], DataState],
) -> dict[str, DataState]:
    """Change the state of each fingerprint, as `change_state` does, and read each HEAD once. Return
    the states by fingerprint.

    The HEADs are read after all the states: see the module's docstring.
    """
    changed: dict[str, DataState] = {}
    while fingerprints:
        read = partial(read_state, store)
        states = zip(fingerprints, read_all(read, fingerprints))
        used = functools.cache(lambda: keys_in_use(runs_in(store)))
        again = []
        for fingerprint, (state, version) in states:
            changed[fingerprint] = wanted = change(fingerprint, state, used)
            if wanted != state and not swap_state(store, fingerprint, wanted, version):
                again.append(fingerprint)
        fingerprints = again
    return changed


def _stored_folders(store: Store, fingerprint: str = "") -> dict[str, dict[str, int]]:
    """Return the bytes in each folder, by fingerprint and folder, as the store has them; of one
    fingerprint, or of all."""
    by_fingerprint: dict[str, dict[str, int]] = {}
    for entry in store.list(f"{SHARED}/{fingerprint}/" if fingerprint else f"{SHARED}/"):
        parts = entry.key.split("/")
        if len(parts) == 3 and parts[2] == "state.json" and is_sha256(parts[1]):
            by_fingerprint.setdefault(parts[1], {})
        if len(parts) > 3 and is_data_key("/".join(parts[:3])):
            sizes = by_fingerprint.setdefault(parts[1], {})
            sizes[parts[2]] = sizes.get(parts[2], 0) + entry.size
    return by_fingerprint


def _let_go_if_unused(now: float, fingerprint: str, state: DataState, used: Used) -> DataState:
    """Make marked data unusable whose hour has passed; unmark it if a run uses it by now."""
    if state.folder is None or state.delete_after is None or state.delete_after > now:
        return state
    if data_key(fingerprint, state.folder) in used():
        return state.unmarked()
    unneeded = (*state.unneeded, Unneeded(state.folder, now))
    return dataclasses.replace(state, folder=None, bytes=0, delete_after=None, unneeded=unneeded)


def _forget(folders: Sequence[str], state: DataState) -> DataState:
    left = tuple(item for item in state.unneeded if item.folder not in folders)
    deleted = tuple(dict.fromkeys((*folders, *state.deleted)))[:DELETED_KEPT]
    return dataclasses.replace(state, unneeded=left, deleted=deleted)
