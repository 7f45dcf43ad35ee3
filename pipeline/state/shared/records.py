"""What a store records about shared prepared data: `_data/<fingerprint>/state.json`.

The data itself is in a folder next to this file, `_data/<fingerprint>/<id>/`. An id is random and
is never used twice. So nobody writes into a folder that somebody else made, and a folder that is
being deleted is never needed again.
"""

from __future__ import annotations

import dataclasses
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Predicate

from pipeline.state.head import SHARED, Head
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Count, Epoch, Time, closed_record
from pipeline.state.stores import Store
from pipeline.state.stores.base import is_run_name

# Format 1 is of commits before 0.1.0.
STATE_FORMAT = 2
# So many deleted folders are remembered.
DELETED_KEPT = 64
_FOLDER = re.compile(r"[0-9a-f]{32}")


def is_folder(text: str) -> bool:
    """Return whether `text` could be a result of `new_folder`."""
    return _FOLDER.fullmatch(text) is not None


# What is read from a store names folders to delete: never `..`, nor anything else of the disk.
Folder = Annotated[str, Predicate(is_folder)]
RunName = Annotated[str, Predicate(is_run_name)]


@dataclass(frozen=True)
class Writer:
    """A claim of a run that prepares the data, in the folder `folder`, since `at` (Unix time).

    `replaces` is the folder with finished data that was there before; None: there was none.
    """

    run: RunName
    epoch: Epoch
    session: str
    host: str
    folder: Folder
    at: Time
    replaces: Folder | None = None

    def is_claim_of(self, other: Writer | None) -> bool:
        """Return whether both are the same claim of the same run."""
        mine = (self.run, self.epoch, self.session)
        return other is not None and mine == (other.run, other.epoch, other.session)


@dataclass(frozen=True)
class Unneeded:
    """A folder that no run may use. Its files may be deleted from `not_before` (Unix time) on."""

    folder: Folder
    not_before: Time


@closed_record
@dataclass(frozen=True)
class DataState:
    """The state of the data with one fingerprint.

    Attributes:
        folder: the id of the folder with the finished data; None: there is none.
        bytes: its size.
        at: when it was finished, in Unix time.
        sources: what it was made of, in words.
        writer: who is preparing it, or was when that process died.
        delete_after: if the data is marked for deletion, from when on, in Unix time.
        unneeded: the folders to delete.
        deleted: the folders that were in `unneeded`, newest first.
    """

    folder: Folder | None = None
    bytes: Count = 0
    at: Time = 0.0
    sources: tuple[str, ...] = ()
    writer: Writer | None = None
    delete_after: Time | None = None
    unneeded: tuple[Unneeded, ...] = ()
    deleted: tuple[Folder, ...] = ()
    format: int = STATE_FORMAT

    def unmarked(self) -> DataState:
        """Return the state of data that is not to be deleted."""
        return dataclasses.replace(self, delete_after=None)

    def was_unneeded(self, folder: str) -> bool:
        """Return whether the files of a folder may be deleted, or are."""
        return folder in self.deleted or any(item.folder == folder for item in self.unneeded)


def find_rows(store: Store, rows: str) -> tuple[str, int] | None:
    """Return the key of data that has the rows with a fingerprint, and the number of the source
    there; None: there is none. The data may be deleted by now. Raises StoreError."""
    pattern = re.compile(rf"({SHARED}/[0-9a-f]{{64}}/)rows-{rows}-([0-9]{{1,9}})-([0-9a-f]{{32}})")
    matches = (pattern.fullmatch(entry.key) for entry in store.list(f"{SHARED}/"))
    return next(((m[1] + m[3], int(m[2])) for m in matches if m), None)


def new_folder() -> str:
    """Return the id of a folder that nobody has used."""
    return uuid.uuid4().hex


def state_key(fingerprint: str) -> str:
    """Return the store's key of the record."""
    return f"{SHARED}/{fingerprint}/state.json"


def read_state(store: Store, fingerprint: str) -> tuple[DataState, str | None]:
    """Return the state of the data and its version in the store.

    Raises `Damaged`, or `BadInput` for another format version.
    """
    state, version = _file(store, fingerprint).read()
    return state or DataState(), version


def swap_state(store: Store, fingerprint: str, state: DataState, version: str | None) -> bool:
    """Replace `version` of the state; return False if the store has another version.

    If this raises StoreError, the swap may still have happened: read the state again.
    """
    return _file(store, fingerprint).swap(state, version)


def change_state(
    store: Store, fingerprint: str, change: Callable[[DataState], DataState]
) -> DataState:
    """Replace the state by what `change` makes of it, and return the result.

    If another process writes in between, `change` gets the other state. If it changes nothing,
    nothing is written. Raises as `read_state` does, and StoreError.
    """
    return _file(store, fingerprint).change(change, DataState())


def keys_in_use(heads: dict[str, Head]) -> dict[str, list[str]]:
    """Return, by the key of each shared folder that a HEAD lists, the runs that list it."""
    users: dict[str, list[str]] = {}
    for run, head in heads.items():
        for key in sorted(set(head.data.values())):
            users.setdefault(key, []).append(run)
    return users


def _file(store: Store, fingerprint: str) -> RecordFile[DataState]:
    return RecordFile(
        store,
        state_key(fingerprint),
        strictly(DataState, STATE_FORMAT),
        advice="Delete this file. The runs that use this data keep it, and the next run that needs "
        "it prepares it again.",
    )
