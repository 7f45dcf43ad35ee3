"""Download a large object from a remote store into a file: parallel ranges, hashed as they
arrive."""

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.state.stores.local import create, explained, replacing
from pipeline.state.stores.retry import Retry

PART_BYTES = 8 << 20
THREADS = 6
# Fetched parts that may wait in memory for an earlier part to be hashed.
_AHEAD = 2

# `fetch(start, stop)` yields the object's bytes from `start` up to `stop`, in pieces.
Fetch = Callable[[int, int], Iterable[bytes]]


def download_parallel(
    fetch: Fetch, size: int, path: Path, retry: Retry, part_bytes: int = PART_BYTES
) -> str:
    """Put an object of `size` bytes into the file `path`, all or nothing, and return its sha256.

    If fetching a range fails, or ends early (a `ConnectionError`), `retry` decides whether to
    continue from the last byte that arrived. Up to 8 parts are in memory at once. Raises what
    `retry` raises, and `StoreError` when the file can't be written.
    """
    with replacing(path) as temporary:
        with explained("write", path):
            file = create(temporary, "xb")
        with file:
            with explained("write", path):
                _preallocate(file.fileno(), size)
            sha256 = _Download(fetch, size, path, retry, part_bytes, file.fileno()).run()
            with explained("write", path):
                os.fsync(file.fileno())
    return sha256


class _Download:
    """One object that is being fetched into an open file."""

    def __init__(
        self, fetch: Fetch, size: int, path: Path, retry: Retry, part_bytes: int, descriptor: int
    ) -> None:
        self._fetch, self._size, self._path, self._retry = fetch, size, path, retry
        self._part_bytes, self._descriptor = part_bytes, descriptor
        self._given_up = threading.Event()

    def run(self) -> str:
        """Fetch every part; hash the parts in order while later ones are being fetched."""
        digest = hashlib.sha256()
        parts: deque[Future[bytearray]] = deque()
        with ThreadPoolExecutor(THREADS, "download") as pool:
            try:
                for start in range(0, self._size, self._part_bytes):
                    if len(parts) == THREADS + _AHEAD:
                        digest.update(parts.popleft().result())
                    parts.append(pool.submit(self._part, start))
                while parts:
                    digest.update(parts.popleft().result())
            except BaseException:
                # Leaving `with` still waits for the threads: they write to a file that is closed
                # next.
                self._given_up.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return digest.hexdigest()

    def _part(self, start: int) -> bytearray:
        """Return the part that begins at `start`, after writing it to the file."""
        part = bytearray(min(self._part_bytes, self._size - start))
        reached = 0

        def fetch_rest() -> None:
            nonlocal reached
            if reached == len(part):  # the connection broke after the last byte
                return
            self._check_going()
            for piece in self._fetch(start + reached, start + len(part)):
                self._check_going()
                if reached + len(piece) > len(part):
                    raise ConnectionError("more bytes arrived than were asked for")
                part[reached : reached + len(piece)] = piece
                reached += len(piece)
            if reached < len(part):
                raise ConnectionError(f"{reached:,} of {len(part):,} bytes arrived")

        self._retry(fetch_rest)
        with explained("write", self._path):
            written = 0
            while written < len(part):
                written += os.pwrite(self._descriptor, memoryview(part)[written:], start + written)
        return part

    def _check_going(self) -> None:
        if self._given_up.is_set():
            raise InterruptedError("another part of the object could not be fetched")


def _preallocate(descriptor: int, size: int) -> None:
    """Reserve the space, so that a full disk is an error before the download and not at its end."""
    if size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(descriptor, size)
