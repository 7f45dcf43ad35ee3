"""A store in memory, and processes on it that go on one operation at a time, when they are told.

The processes run the real protocol, each in a thread of its own, of which only one moves at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pion.errors import PionError
from pipeline.state.stores import Conflict, Entry, Missing, StoreError
from pipeline.state.stores.base import Data, Entries, WritesAtOnce
from tests.faults.faulty_store import Crash
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS

T = TypeVar("T")
Fate = Literal["done", "outage", "lost", "late", "dies", "dies after", "dies late"]
"""What becomes of an operation: it is done · the store is down · done, but its answer is lost ·
given up, and done at some later time · the process dies before it · after it · leaving it to be
done at some later time."""
UNTOLD = "the test lost it"


class MemoryStore(WritesAtOnce):
    """Keys to bytes. `swapped` is called with the key, the old and the new content."""

    url = "memory://store"

    def __init__(self, swapped: Callable[[str, bytes | None, bytes], None]) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self._swapped = swapped
        self._versions = map(str, itertools.count())

    def read(self, key: str) -> bytes:
        return self.read_versioned(key)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        if key not in self.objects:
            raise Missing(key, self.url)
        return self.objects[key]

    def write(self, key: str, data: Data) -> None:
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        self.objects[key] = content, next(self._versions)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        old, version = self.objects.get(key, (None, None))
        if version != expected:
            raise Conflict(key, self.url)
        self.write(key, data)
        self._swapped(key, old, data)
        return self.objects[key][1]

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def download(self, key: str, path: Path) -> str:
        content = self.read(key)
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def local_path(self, key: str) -> Path | None:
        return None

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        return 0

    def list(self, prefix: str = "") -> Entries:
        found = sorted(key for key in self.objects if key.startswith(prefix))
        return [Entry(key, len(self.objects[key][0])) for key in found]

    def probe(self, prefix: str) -> None:
        """Nothing to find out."""


class SteppedStore(WritesAtOnce):
    """`inner`, each of whose operations waits until `step` lets it be done."""

    def __init__(self, inner: MemoryStore, late: list[Callable[[], Any]]) -> None:
        self.inner = inner
        self.url = inner.url
        self.error: BaseException | None = None
        self.ended = False
        self.pending = ""
        """The key of the operation that waits."""
        self._late = late
        self._dead = False
        self._fate: Fate = "done"
        self._resume, self._paused = threading.Semaphore(0), threading.Semaphore(0)

    def start(self, work: Callable[[], None]) -> None:
        """Let a process do `work`, as far as its first operation."""

        def run() -> None:
            try:
                work()
            except (Crash, Exception) as error:
                self.error = error
            self.ended = True
            self._paused.release()

        threading.Thread(target=run, daemon=True).start()
        assert self._paused.acquire(timeout=PATIENCE_SECONDS), self.pending

    def step(self, fate: Fate = "done") -> None:
        """Let the process meet `fate` with its next operation, and go on to the one after."""
        if not self.ended:
            self._fate = fate
            self._resume.release()
            assert self._paused.acquire(timeout=PATIENCE_SECONDS), self.pending

    def read(self, key: str) -> bytes:
        return self.do(key, lambda: self.inner.read(key))

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        return self.do(key, lambda: self.inner.read_versioned(key))

    def write(self, key: str, data: Data) -> None:
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        self.do(key, lambda: self.inner.write(key, content), changes=True)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        swap = self.inner.compare_and_swap
        return self.do(key, lambda: swap(key, data, expected), changes=True)

    def delete(self, key: str) -> None:
        self.do(key, lambda: self.inner.delete(key), changes=True)

    def download(self, key: str, path: Path) -> str:
        return self.do(key, lambda: self.inner.download(key, path))

    def local_path(self, key: str) -> Path | None:
        return None

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        return self.do(prefix, lambda: self.inner.sweep_unfinished(prefix, before))

    def list(self, prefix: str = "") -> Entries:
        return self.do(prefix, lambda: self.inner.list(prefix))

    def probe(self, prefix: str) -> None:
        """Nothing to find out."""

    def do(self, key: str, call: Callable[[], T], *, changes: bool = False) -> T:
        """Wait for the turn, and meet the fate. Only what `changes` the store is done late."""
        if self._dead:
            raise Crash(key)
        self.pending = key
        self._paused.release()
        assert self._resume.acquire(timeout=LONG_SECONDS), key
        fate = self._fate
        self._dead = fate.startswith("dies")
        if fate in ("late", "dies late") and changes:
            self._late.append(call)
        if fate in ("done", "lost", "dies after"):
            result = call()
        if fate == "done":
            return result
        if self._dead:
            raise Crash(key)
        raise StoreError("reach", key, UNTOLD, outage=True)


class OneAtATime:
    """Stands in for a pool of threads: what they do would come in another order each time."""

    def __init__(self, *arguments: Any) -> None:
        """However many threads were asked for."""

    def __enter__(self) -> OneAtATime:
        return self

    def __exit__(self, *exception: object) -> None:
        """Everything is done."""

    def map(self, function: Callable[..., T], *items: Iterable[Any]) -> Iterator[T]:
        return iter([function(*item) for item in zip(*items)])


def land(call: Callable[[], Any]) -> None:
    """Do now what its process has given up; nobody hears how it went."""
    with contextlib.suppress(PionError):
        call()
