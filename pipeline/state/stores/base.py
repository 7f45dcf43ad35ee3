"""What every store can do, the errors it raises, the names it accepts, and many reads at once.

A store maps keys (`demo/HEAD.json`) to bytes. A key is written whole or not at all. Only
`compare_and_swap` decides between writers; every other key of a run is written once.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pion.errors import BadInput, PionError
from pion.untrusted import LARGEST_RECORD
from pipeline.state.record_json import Damaged, damaged

Data = bytes | memoryview | Path

# The records of searches over settings, and those of the ladders of older versions.
LADDERS = "_ladders"
# What is not a run: what runs share (prepared data, and the models that runs start from), searches.
RESERVED = ("_data", "_bases", LADDERS)
# The most names that a list of folders looks through. Each thousand is a request.
MOST_NAMES = 100_000
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*")


class Missing(PionError):
    """The store has nothing under `key`."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{url}/{key} does not exist.")
        self.key, self.url = key, url


class Conflict(PionError):
    """A compare-and-swap found a version other than the expected one.

    Nothing was written. Or the write succeeded, its acknowledgement was lost, and another process
    has replaced it since.
    """

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{url}/{key} was changed by another process in the meantime.")
        self.key, self.url = key, url


class StoreError(PionError):
    """The store could not do `action` at `where` (path or key), because of `reason`.

    errors.py decides what the failure means for the command. A write that raised this error may
    still have happened (a lost acknowledgement). `outage` means that trying again later may help (a
    network or a service that is down), although the retries so far did not.
    """

    def __init__(self, action: str, where: str, reason: str, *, outage: bool = False) -> None:
        super().__init__(f"Cannot {action} {where}: {reason}.")
        self.action = action
        self.where = where
        self.reason = reason
        self.outage = outage


@dataclass(frozen=True)
class Entry:
    """One stored object; `size` in bytes."""

    key: str
    size: int


Entries = list[Entry]
Names = list[str]


# A write that waits for its commit, as plain JSON.
Staged = dict[str, Any]


class Store(Protocol):
    """Keys to bytes. Every method raises `StoreError` when the store itself fails.

    By default, a store is far from this disk, and each write is durable and seen by all when it
    returns.

    A store may collect writes and deletes into commits (`commits` is true). This object's own reads
    see such changes at once. The next `compare_and_swap` or `flush` commits them all, and then
    everybody sees them.

    Attributes:
        commits: whether writes wait for a commit. The number of commits per hour is limited.
        save_seconds: the shortest interval between checkpoints that the store allows.
    """

    url: str
    commits: bool = False
    save_seconds: float = 0.0

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
        """Return the bytes under `key`. Raises `Missing`, and `Damaged` without reading further if
        there are more than `limit` bytes."""

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """Return the bytes under `key`, a record, and their version for `compare_and_swap`. Raises
        as `read` does."""

    def write(self, key: str, data: Data) -> None:
        """Store bytes or a file's content under `key`, all or nothing."""

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace version `expected` (None: nothing there yet) and return the new version.

        Raises `Conflict`, and writes nothing, when another version is there.
        """

    def flush(self) -> None:
        """Make everything written so far durable and seen by all."""
        return None

    def staged(self) -> list[Staged]:
        """Return the writes that wait for a commit, for another process's `adopt`."""
        return []

    def adopt(self, staged: list[Staged]) -> None:
        """Take over writes whose bytes another process has already sent to the store."""
        return None

    def delete(self, key: str) -> None:
        """Remove `key`; do nothing if it does not exist."""

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        """Put the bytes under `key` into the file `path`, all or nothing. Return the sha256 of the
        bytes that arrived. Raises `Missing`, and `Damaged` before anything is written if there are
        more than `limit` bytes."""

    def local_path(self, key: str) -> Path | None:
        """Return where `key` (empty: the whole store) can be memory-mapped here, or None if it must
        be downloaded."""
        return None

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        """Remove what writers that died before `before` (Unix time) left unfinished, and what no
        key uses any more. Return how many objects were removed."""

    def list(self, prefix: str = "") -> Entries:
        """Return every object whose key starts with `prefix`, sorted by key."""

    def folders(self) -> Names:
        """Return the names at the top of the store below which there may be objects, sorted.

        What lies below them costs nothing: a remote store makes a request for every thousand names.
        Raises BadInput if there are more than `MOST_NAMES`. Files count, except in a folder, where
        they cost nothing.
        """

    def service_time(self) -> float | None:
        """Return Unix seconds by the clock of the store's service, exact to half a second.

        Returns None for a folder, which has no other clock, and if the service says no readable
        date. Makes one cheap request, with retries.
        """
        return None

    def probe(self, prefix: str) -> str:
        """Check that keys below `prefix` can be read, written and deleted, and that
        `compare_and_swap` really compares. Leaves nothing behind. Return what a person should know
        about the store, mostly nothing. Raises `BadInput` saying what is wrong and what to do."""


def check_key(key: str) -> str:
    """Return the key if every store can hold it. Raises `BadInput`.

    Parts are letters, digits and `_.+=@-`, and don't start with a dot or a dash. This rule also
    excludes `..`, absolute paths and the hidden files of stores.
    """
    for part in key.split("/"):
        if not _PART.fullmatch(part):
            raise BadInput(
                f"{key!r} can't be a name in a store: {part!r} must be letters, digits and "
                "_ . + = @ - and start with a letter, digit or _."
            )
    return key


def is_key(key: str) -> bool:
    """Return whether every store can hold the key; see `check_key`."""
    return all(_PART.fullmatch(part) for part in key.split("/"))


def too_large(where: str, limit: int) -> Damaged:
    """Return the error for an object in a store with more than `limit` bytes."""
    return damaged(where, f"it has more than {limit:,} bytes")


def check_count(names: int, where: str, better: str) -> None:
    """Raise BadInput if a place in a store has more than `MOST_NAMES` names, with a better place
    for runs."""
    if names > MOST_NAMES:
        raise BadInput(
            f"{where} has more than {MOST_NAMES:,} files and folders, too many to find the runs "
            "among them. Nothing was changed. A run is still found by its name. Keep runs apart "
            f"from other things, for example in {better}."
        )


def is_run_name(name: str) -> bool:
    """Return whether every store can hold a run of that name; see `check_run_name`."""
    return _PART.fullmatch(name) is not None and len(name) <= 100 and name not in RESERVED


def check_run_name(name: str) -> str:
    """Return the run name if it is legal in every store. Raises `BadInput`."""
    if not is_run_name(name):
        taken = f"{', '.join(RESERVED[:-1])} and {RESERVED[-1]}"
        raise BadInput(
            f"{name!r} can't be the name of a run: use at most 100 letters, digits and "
            f"_ . + = @ - and start with a letter, digit or _. {taken} are taken."
        )
    return name


def write_once(store: Store, key: str, data: bytes) -> None:
    """Write `key` unless it already holds exactly `data`.

    Raises `PionError` when it holds other content. Such keys name their content by digest, so
    either somebody edited the store or the digest has a bug.
    """
    try:
        present = store.read(key)
    except Missing:
        store.write(key, data)
        return
    if present != data:
        raise PionError(
            f"{store.url}/{key} already has different content. This file is written only once and "
            "was not changed. If somebody edited this file, restore it, or give the run a new name."
        )


# ---------------------------------------------------------------- many reads: each is a round trip

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS = 16


def read_all(read: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what `read` returns for each item, in their order, `READERS` at a time.

    Raises what `read` raised first. Reads that have not begun by then are left out: while a store
    is down, each would wait for its retries.
    """
    if min(READERS, len(items)) <= 1:
        return [read(item) for item in items]
    with ThreadPoolExecutor(min(READERS, len(items)), "read") as pool:
        try:
            return list(pool.map(read, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
