"""What every store can do, the errors it raises, and the names it accepts.

A store maps keys (`demo/HEAD.json`) to bytes. Keys are written whole or not at all, and only
`compare_and_swap` decides between writers; everything else in a run is written once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pion.errors import BadInput, PionError

Data = bytes | memoryview | Path

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*")


class Missing(PionError):
    """The store holds nothing under `key`."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{url}/{key} does not exist.")
        self.key, self.url = key, url


class Conflict(PionError):
    """A compare-and-swap found another version than the expected one.

    Nothing was written, or, after a lost acknowledgement, somebody has built upon it already.
    """

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{url}/{key} was changed by someone else meanwhile.")
        self.key, self.url = key, url


class StoreError(PionError):
    """The store could not do what was asked: `where` (path or key) and `reason` say why.

    What the failure means for the command, verdict.py decides. A write that raised this may still
    have happened (a lost acknowledgement). `outage`: trying again later may help (a network or a
    service that is down), although retries have not.
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


# A write that waits for its commit, as plain JSON.
Staged = dict[str, Any]


class Store(Protocol):
    """Keys to bytes. Every method raises `StoreError` when the store itself fails.

    A store may gather writes and deletes into commits (`commits` is true). They are then seen by
    this object's own reads at once, and by everybody from the next `compare_and_swap` or `flush`
    on, which carries them all.
    """

    url: str
    commits: bool
    """Whether writes wait for a commit, of which there are only so many an hour."""
    save_seconds: float
    """The shortest interval between checkpoints that the store bears."""

    def read(self, key: str) -> bytes:
        """The bytes under `key`; raises `Missing`."""

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The bytes under `key` and their version for `compare_and_swap`; raises `Missing`."""

    def write(self, key: str, data: Data) -> None:
        """Store bytes or a file's content under `key`, all or nothing."""

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace version `expected` (None: nothing there yet) and return the new version.

        Raises `Conflict` when another version is there; nothing is written then.
        """

    def flush(self) -> None:
        """Make everything written so far durable and seen by all."""

    def staged(self) -> list[Staged]:
        """The writes that wait for a commit, to be handed to another process's `adopt`."""

    def adopt(self, staged: list[Staged]) -> None:
        """Take over writes whose bytes another process has brought to the store already."""

    def delete(self, key: str) -> None:
        """Remove `key`; nothing there is fine."""

    def download(self, key: str, path: Path) -> str:
        """Put the bytes under `key` into the file `path`, all or nothing, and return their sha256,
        computed from what arrived. Raises `Missing`."""

    def local_path(self, key: str) -> Path | None:
        """Where `key` can be memory-mapped on this machine, or None if it must be downloaded."""

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        """Remove what writers that died before `before` (Unix time) left unfinished, and what no
        key uses any more; how many."""

    def list(self, prefix: str = "") -> Entries:
        """Every object whose key starts with `prefix`, sorted by key."""

    def probe(self, prefix: str) -> None:
        """Find out whether this store can be read, written and deleted below `prefix`, and whether
        `compare_and_swap` really compares. Raises `BadInput` saying what is wrong and what to do;
        leaves nothing behind."""


class WritesAtOnce:
    """What a store does about commits if its writes wait for none: nothing."""

    commits = False
    save_seconds = 0.0

    def flush(self) -> None:
        """Every write is durable, and seen by all, when it returns."""

    def staged(self) -> list[Staged]:
        """No write waits."""
        return []

    def adopt(self, staged: list[Staged]) -> None:
        """No write waits in another process either."""
        assert not staged


def check_key(key: str) -> str:
    """The key itself, if it is one every store can hold.

    Parts are letters, digits and `_.+=@-`, and don't start with a dot or a dash, which also keeps
    `..`, absolute paths and stores' own hidden files out. Raises `BadInput`.
    """
    for part in key.split("/"):
        if not _PART.fullmatch(part):
            raise BadInput(
                f"{key!r} can't be a name in a store: {part!r} must be letters, digits and "
                "_ . + = @ - and start with a letter, digit or _."
            )
    return key


def check_run_name(name: str) -> str:
    """The run name itself, if it is legal in every store; raises `BadInput`."""
    if not _PART.fullmatch(name) or len(name) > 100:
        raise BadInput(
            f"{name!r} can't be the name of a run: use at most 100 letters, digits and "
            "_ . + = @ - and start with a letter, digit or _."
        )
    return name


def write_once(store: Store, key: str, data: bytes) -> None:
    """Write `key` unless it already holds exactly `data`.

    Raises `PionError` when it holds something else: such keys name their content by digest, so
    either the store was edited by hand or the digest has a bug.
    """
    try:
        present = store.read(key)
    except Missing:
        store.write(key, data)
        return
    if present != data:
        raise PionError(
            f"{store.url}/{key} already holds something else. It is written once and was left as "
            "it is; if it was edited by hand, restore it or start the run under a new name."
        )
