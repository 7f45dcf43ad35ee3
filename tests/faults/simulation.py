"""A store in memory, and processes that do one store operation at a time, on command.

The processes run the real protocol. Each process has its own thread, and only one thread moves at a
time.
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
from pion.untrusted import LARGEST_RECORD
from pipeline.state.stores import Conflict, Entry, Missing, StoreError
from pipeline.state.stores.base import Data, Entries, Names, Store
from tests.faults.faulty_store import Crash, Passing
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS

T = TypeVar("T")
# What happens to an operation: it is done · the store is down · it is done, but its answer is lost
# · the process gives it up, but it is done later · the process dies before it · the process dies
# after it · the process dies, and the operation is done later.
Fate = Literal["done", "outage", "lost", "late", "dies", "dies after", "dies late"]
UNTOLD = "the test lost it"
CHANGES = ("write", "swap", "delete", "publish")


class MemoryStore(Store):
    """Keys to bytes. `swapped` is called with the key, the old and the new content."""

    url = "memory://store"

    def __init__(self, swapped: Callable[[str, bytes | None, bytes], None]) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self._swapped = swapped
        self._versions = map(str, itertools.count())

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
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

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        content = self.read(key)
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        return 0

    def list(self, prefix: str = "") -> Entries:
        found = sorted(key for key in self.objects if key.startswith(prefix))
        return [Entry(key, len(self.objects[key][0])) for key in found]

    def folders(self) -> Names:
        return sorted({key.partition("/")[0] for key in self.objects if "/" in key})

    def probe(self, prefix: str) -> None:
        """Do nothing: there is nothing to find out."""


class SteppedStore(Passing):
    """`inner`, but each operation waits until `step` allows it."""

    def __init__(self, inner: MemoryStore, late: list[Callable[[], Any]]) -> None:
        super().__init__(inner)
        self.error: BaseException | None = None
        self.ended = False
        self.pending = ""
        """The key of the waiting operation."""
        self._late = late
        self._dead = False
        self._fate: Fate = "done"
        # Each is released once for each time that it is acquired. Semaphores take longer.
        self._resume, self._paused = threading.Lock(), threading.Lock()
        self._resume.acquire()
        self._paused.acquire()

    def start(self, work: Callable[[], None]) -> None:
        """Let a process do `work` until its first operation."""

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
        """Apply `fate` to the process's next operation, and run it until the operation after
        that."""
        if not self.ended:
            self._fate = fate
            self._resume.release()
            assert self._paused.acquire(timeout=PATIENCE_SECONDS), self.pending

    def write(self, key: str, data: Data) -> None:
        super().write(key, data.read_bytes() if isinstance(data, Path) else bytes(data))

    def do(self, action: str, key: str, call: Callable[[], T]) -> T:
        """Wait for `step`, and apply its fate. Only an operation that changes something is done
        late."""
        if self._dead:
            raise Crash(key)
        self.pending = key
        self._paused.release()
        assert self._resume.acquire(timeout=LONG_SECONDS), key
        fate = self._fate
        self._dead = fate.startswith("dies")
        if fate in ("late", "dies late") and action in CHANGES:
            self._late.append(call)
        if fate in ("done", "lost", "dies after"):
            result = call()
        if fate == "done":
            return result
        if self._dead:
            raise Crash(key)
        raise StoreError("reach", key, UNTOLD, outage=True)


class OneAtATime:
    """Replaces a thread pool, because threads would run in a different order each time."""

    def __init__(self, *arguments: Any) -> None:
        """Ignore the number of threads."""

    def __enter__(self) -> OneAtATime:
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing: all work is done."""

    def map(self, function: Callable[..., T], *items: Iterable[Any]) -> Iterator[T]:
        return iter([function(*item) for item in zip(*items)])


def land(call: Callable[[], Any]) -> None:
    """Do an operation that its process has given up. The result is ignored."""
    with contextlib.suppress(PionError):
        call()
