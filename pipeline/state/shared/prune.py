"""List the shared data of a store, and delete what no run uses, an hour after it was marked.

Each step that can't be taken back is one swap of `state.json`, prepared in this order: read the
state, read the HEAD of every run, swap the state that was read. A run that begins to use the data
meanwhile has either committed its HEAD before it was read here, or it reads the state after the
swap (`begin.confirm`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.state.find_run import runs_in
from pipeline.state.head import SHARED, TRASH_SECONDS, data_key, is_data_key
from pipeline.state.owner import Owner
from pipeline.state.record_json import is_sha256
from pipeline.state.shared.begin import preparing
from pipeline.state.shared.folder import delete_folder
from pipeline.state.shared.records import (
    DELETED_KEPT,
    DataState,
    Unneeded,
    change_state,
    keys_in_use,
    read_state,
)
from pipeline.state.stores import Store
from pipeline.state.stores.clock import Clock


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
    me, found = Owner.me(), []
    for fingerprint, sizes in stored.items():
        state, _ = read_state(store, fingerprint)
        by_folder = {folder: users.get(data_key(fingerprint, folder), ()) for folder in sizes}
        runs = sorted({run for using in by_folder.values() for run in using})
        writer = preparing(store, state, me, clock)
        if sizes or writer is not None:
            size = sum(sizes.values())
            unused = sum(sizes[folder] for folder, using in by_folder.items() if not using)
            found.append(
                Listed(
                    fingerprint,
                    state,
                    tuple(runs),
                    bytes=size,
                    unused=unused,
                    prepared_by=None if writer is None else writer.run,
                )
            )
    return sorted(found, key=lambda item: (item.state.at, item.fingerprint))


def mark(store: Store, fingerprints: Iterable[str], clock: Clock) -> list[str]:
    """Mark all data that no run uses for deletion in an hour; return the fingerprints.

    Data that was marked before is not marked again. Folders that an interrupted process left are
    marked with it. Raises BadInput if the HEAD of a run can't be read.
    """
    return [f for f in fingerprints if _marked(store, f, clock)]


def delete_due(store: Store, clock: Clock) -> tuple[list[str], int]:
    """Delete the marked data whose hour has passed and that no run uses by now.

    Data that a run uses by now is no longer marked. Returns the fingerprints and the bytes.
    Raises BadInput if the HEAD of a run can't be read; then nothing is deleted.
    """
    deleted, size = [], 0
    for fingerprint, sizes in _stored_folders(store).items():
        state, _ = read_state(store, fingerprint)
        now = clock.now()
        due = state.delete_after is not None and state.delete_after <= now
        if not due and not any(item.not_before <= now for item in state.unneeded):
            continue
        _let_go_if_unused(store, fingerprint, now)
        gone = _delete_unneeded(store, fingerprint, now)
        if gone:
            deleted.append(fingerprint)
            size += sum(sizes.get(folder, 0) for folder in gone)
    return deleted, size


def _stored_folders(store: Store, fingerprint: str = "") -> dict[str, dict[str, int]]:
    """Return the bytes in each folder, by fingerprint and folder, as the store has them; of one
    fingerprint, or of all."""
    found: dict[str, dict[str, int]] = {}
    for entry in store.list(f"{SHARED}/{fingerprint}/" if fingerprint else f"{SHARED}/"):
        parts = entry.key.split("/")
        if len(parts) == 3 and parts[2] == "state.json" and is_sha256(parts[1]):
            found.setdefault(parts[1], {})
        if len(parts) > 3 and is_data_key("/".join(parts[:3])):
            sizes = found.setdefault(parts[1], {})
            sizes[parts[2]] = sizes.get(parts[2], 0) + entry.size
    return found


def _marked(store: Store, fingerprint: str, clock: Clock) -> bool:
    """Mark what no run uses of one fingerprint; return whether there was anything new to mark."""
    new = False

    def marked(state: DataState) -> DataState:
        nonlocal new
        # In this order: a folder that is complete and listed after the state was read is newer.
        folders = _stored_folders(store, fingerprint).get(fingerprint, {})
        used = keys_in_use(runs_in(store))
        after, result = clock.now() + TRASH_SECONDS, state
        folder = state.folder if state.delete_after is None else None
        if folder is not None and data_key(fingerprint, folder) not in used:
            result = dataclasses.replace(result, delete_after=after)
        known = {state.folder, *(item.folder for item in state.unneeded)}
        writer = preparing(store, state, Owner.me(), clock)
        if writer is not None:
            known.add(writer.folder)
        left = (f for f in folders if f not in known and data_key(fingerprint, f) not in used)
        unneeded = (*state.unneeded, *(Unneeded(folder, after) for folder in left))
        result = dataclasses.replace(result, writer=writer, unneeded=unneeded)
        new = result != dataclasses.replace(state, writer=writer)
        return result

    change_state(store, fingerprint, marked)
    return new


def _let_go_if_unused(store: Store, fingerprint: str, now: float) -> None:
    """Make marked data unusable whose hour has passed; unmark it if a run uses it by now."""

    def let_go(state: DataState) -> DataState:
        if state.folder is None or state.delete_after is None or state.delete_after > now:
            return state
        if data_key(fingerprint, state.folder) in keys_in_use(runs_in(store)):
            return state.unmarked()
        unneeded = (*state.unneeded, Unneeded(state.folder, now))
        return dataclasses.replace(
            state, folder=None, bytes=0, delete_after=None, unneeded=unneeded
        )

    change_state(store, fingerprint, let_go)


def _delete_unneeded(store: Store, fingerprint: str, now: float) -> Sequence[str]:
    """Delete the folders that may be deleted by now; return them."""
    state, _ = read_state(store, fingerprint)
    due = [item.folder for item in state.unneeded if item.not_before <= now]
    if not due:
        return ()
    # No run can begin to use these. One that used an older folder of the data keeps it.
    used = keys_in_use(runs_in(store))
    gone = [folder for folder in due if data_key(fingerprint, folder) not in used]
    for folder in gone:
        delete_folder(store, fingerprint, folder)

    def forget(state: DataState) -> DataState:
        left = tuple(item for item in state.unneeded if item.folder not in due)
        deleted = tuple(dict.fromkeys((*due, *state.deleted)))[:DELETED_KEPT]
        return dataclasses.replace(state, unneeded=left, deleted=deleted)

    change_state(store, fingerprint, forget)
    return gone
