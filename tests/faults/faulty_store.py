"""A store whose k-th operation goes wrong: the process dies there, or the store fails.

After its death the process stays dead: its later operations are not done either.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pion.untrusted import LARGEST_RECORD
from pipeline.state.stores import FileStore, Store, StoreError
from pipeline.state.stores.base import Data, Entries, Names, Staged

T = TypeVar("T")
# `halfway` is for a write: it leaves a torn temporary file or an unfinished upload behind. Other
# operations either happen or don't. `after`: the operation happened, but its answer was lost.
When = Literal["before", "halfway", "after"]


class Crash(BaseException):
    """The process is gone. Like SIGKILL, no `except Exception` stops it."""


def crash(operation: str) -> None:
    """End the process, as far as its own thread can tell."""
    raise Crash(operation)


def kill(operation: str) -> None:
    """End the process with SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(operation: str) -> None:
    """Fail like a store that is down."""
    raise StoreError("reach", operation, "the test says so", outage=True)


class Passing:
    """Passes each operation on to `inner` through `do`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.url, self.commits, self.save_seconds = inner.url, inner.commits, inner.save_seconds

    def do(self, action: str, key: str, call: Callable[[], T]) -> T:
        """Do an operation by `call`."""
        return call()

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
        return self.do("read", key, lambda: self.inner.read(key, limit))

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        return self.do("read", key, lambda: self.inner.read_versioned(key))

    def write(self, key: str, data: Data) -> None:
        self.do("write", key, lambda: self.inner.write(key, data))

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        return self.do("swap", key, lambda: self.inner.compare_and_swap(key, data, expected))

    def flush(self) -> None:
        self.inner.flush()

    def staged(self) -> list[Staged]:
        return self.inner.staged()

    def adopt(self, staged: list[Staged]) -> None:
        self.inner.adopt(staged)

    def delete(self, key: str) -> None:
        self.do("delete", key, lambda: self.inner.delete(key))

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        return self.do("download", key, lambda: self.inner.download(key, path, limit))

    def local_path(self, key: str) -> Path | None:
        return self.inner.local_path(key)

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        return self.do("sweep", prefix, lambda: self.inner.sweep_unfinished(prefix, before))

    def list(self, prefix: str = "") -> Entries:
        return self.do("list", prefix, lambda: self.inner.list(prefix))

    def folders(self) -> Names:
        return self.do("list", "", lambda: self.inner.folders())

    def service_time(self) -> float | None:
        return self.inner.service_time()

    def probe(self, prefix: str) -> None:
        self.inner.probe(prefix)


class FaultyStore(Passing):
    """`inner`, but `happen` is called before, halfway through or after the `at`-th operation (from
    1; None: never). `look` is called before each operation."""

    def __init__(
        self,
        inner: Store,
        at: int | None = None,
        when: When = "before",
        happen: Callable[[str], None] = crash,
    ) -> None:
        super().__init__(inner)
        self.operations: list[str] = []
        """The operations so far: "write run/HEAD.json"."""
        self.look: Callable[[], object] = lambda: None
        self._at, self._when, self._happen = at, when, happen
        self._dead = False
        self._lock = threading.Lock()

    def die(self) -> None:
        """End the process between two operations."""
        self._dead = True
        raise Crash

    def do(self, action: str, key: str, call: Callable[[], T]) -> T:
        """Count the operation and do it, and call `happen` if it is due."""
        self.look()
        operation = f"{action} {key}"
        with self._lock:
            if self._dead:
                raise Crash(operation)
            self.operations.append(operation)
            mine = len(self.operations) == self._at
            self._dead = mine and self._happen is crash
        if mine and self._when != "after":
            if self._when == "halfway":
                tear(self.inner, action, key)
            self._happen(operation)
        result = call()
        if mine and self._when == "after":
            self._happen(operation)
        return result


def can_be_torn(operation: str) -> bool:
    """Return whether a crash halfway leaves something behind that a crash before does not."""
    return operation.partition(" ")[0] in ("write", "swap")


def tear(store: Store, action: str, key: str) -> None:
    """Leave behind the same files as a writer that dies while it writes `key`."""
    if not can_be_torn(action):
        return
    if isinstance(store, FileStore):
        path = store.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / ".tmp-torn").write_bytes(b"half of it")
        return
    bucket: Any = store._bucket
    name = {"Bucket": bucket.name, "Key": bucket.object_name(key)}
    upload = bucket.client.create_multipart_upload(**name)["UploadId"]
    with contextlib.closing(io.BytesIO(b"half of it")) as body:
        bucket.client.upload_part(**name, UploadId=upload, PartNumber=1, Body=body)
