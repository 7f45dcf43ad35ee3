"""Keeps shards of a remote data set on a disk that is smaller than the data set.

Shards are fetched ahead in the order in which training will read them. Used shards make room. A
file gets its name only when it is complete and has the manifest's sha256, so an interrupted
download never leaves a partial shard. Processes on one machine may share a folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import nlargest
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from pion.data.order import RowOrder
from pion.data.phased_order import PhasedOrder
from pion.data.shards import Rows, Shard
from pion.data.stream import Batch, RowStream
from pion.errors import BadInput, PionError
from pion.files import cache_folder, private_folder, sha256_file, unwritable
from pipeline.data.hub import download_shard
from pipeline.machine.folders import open_private
from pipeline.state.record_json import Damaged
from pipeline.state.stores import Missing, Store

# Downloads a shard to somewhere below a folder; returns the file.
Fetch = Callable[[Shard, Path], Path]

ATTEMPTS = 3
# Seconds. A file that another process has opened within this time is not deleted.
IN_USE_SECONDS = 600.0


def default_folder() -> Path:
    """Return where shards are cached on this machine."""
    return cache_folder() / "shards"


def fetching_from(store: Store, key: str, patiently: Callable[[Callable[[], Path]], Path]) -> Fetch:
    """Return what downloads a shard of the prepared data `key` of a store, or of the Hub if it is
    there. It raises PionError. `patiently` calls it again while the store is down."""
    return lambda shard, folder: patiently(lambda: _fetch(store, key, shard, folder))


def _fetch(store: Store, key: str, shard: Shard, folder: Path) -> Path:
    assert shard.remote is not None
    if shard.remote["repo"]:
        return download_shard(shard, folder)
    path = folder / shard.sha256
    try:
        store.download(f"{key}/{shard.remote['path']}", path, limit=shard.bytes)
    except (Missing, Damaged) as error:
        raise PionError(
            f"The prepared data at {store.url}/{key} can't be used: {shard.remote['path']} is "
            "missing or damaged. Everything that was saved is safe. To prepare the data again and "
            "train on it again, use --redo prepare."
        ) from error
    return path


class ShardCache:
    """Remote shards in `folder`, at most `budget_bytes` of them.

    `fetch(shard, folder)` downloads a shard to somewhere below `folder` and returns the file.
    The folder is made for this user alone. Raises BadInput if it can't be made.
    """

    def __init__(
        self,
        folder: Path,
        budget_bytes: int,
        fetch: Fetch = download_shard,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._folder, self._fetch = folder, fetch
        self._downloads = folder / "downloads"
        self._wanted: dict[str, Shard] = {}  # by file name, soonest first
        self._plan = 0  # counts the changes that fetching ahead must follow
        self._starved = False  # fetching ahead found no room
        self._incoming: dict[str, int] = {}  # bytes of the downloads under way
        self._verified: set[str] = set()
        self._in_hand = ""  # the file that path_of returned last
        self._releases: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        try:
            private_folder(folder)
            self._downloads.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None

    def path_of(self, shard: Shard) -> Path:
        """Return the local file of a shard; block until it is fetched and verified.

        Raises PionError if the shard can't be fetched or does not have the manifest's hash.
        """
        path = self._path(shard)
        with _locked(path) as stamp:
            with self._changed:
                self._in_hand = path.name
                if self._starved:  # the previous file in hand can make room now
                    self._starved = False
                    self._plan += 1
                    self._changed.notify_all()
            if not self._is_good(path, shard, stamp):
                self._wait_for_room(path, shard)
                self._obtain(path, shard, stamp)
            # Marks it as in use for other processes, with the time of last use.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def want(self, shards: Sequence[Shard]) -> None:
        """Fetch ahead as many of `shards` as fit. They are sorted, soonest needed first."""
        sums = accumulate(shard.bytes for shard in shards)
        fitting = (shard for shard, taken in zip(shards, sums) if taken <= self.budget_bytes)
        wanted = {self._path(shard).name: shard for shard in fitting}
        with self._changed:
            if list(wanted) == list(self._wanted) or self._closed:
                return
            dropped = self._wanted.keys() - wanted.keys()
            self._wanted = wanted
            self._plan += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch_ahead, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        for name in dropped:
            self._release(name)

    def on_evict(self, shard: Shard, release: Callable[[], None]) -> None:
        """Call `release` before a shard's file is deleted, so that its mapping is closed."""
        self._releases[self._path(shard).name] = release

    def close(self) -> None:
        """Stop fetching ahead. The next fetch resumes an interrupted download."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fetch_ahead(self) -> None:
        followed = 0
        while not self._closed:
            with self._changed:
                while self._plan == followed and not self._closed:
                    self._changed.wait()
                followed, wanted = self._plan, self._wanted
            for shard in wanted.values():
                if self._closed or self._plan != followed:
                    break
                # If this fails, it is tried again, and reported, when a row of the shard is needed.
                with suppress(PionError, OSError):
                    self._fetch_if_room(shard)

    def _fetch_if_room(self, shard: Shard) -> None:
        path = self._path(shard)
        with _locked(path) as stamp:
            if self._is_good(path, shard, stamp):
                return
            if self._make_room(path, shard):
                self._obtain(path, shard, stamp)
            else:
                self._starved = True

    def _path(self, shard: Shard) -> Path:
        suffix = ".bin" if shard.name.endswith(".bin") else ".npy"
        return self._folder / f"{shard.sha256[:32]}{suffix}"

    def _is_good(self, path: Path, shard: Shard, stamp: BinaryIO) -> bool:
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return False
        if path.name not in self._verified and stamp.read() != _stamp_of(path, shard):
            if sha256_file(path) != shard.sha256:
                return False
            _write_stamp(stamp, path, shard)
        self._verified.add(path.name)
        return True

    def _obtain(self, path: Path, shard: Shard, stamp: BinaryIO) -> None:
        try:
            for _ in range(ATTEMPTS):
                fetched = self._fetch(shard, self._downloads)
                if fetched.stat().st_size == shard.bytes and sha256_file(fetched) == shard.sha256:
                    self._verified.add(path.name)
                    os.replace(fetched, path)
                    _write_stamp(stamp, path, shard)
                    return
                fetched.unlink()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise PionError(
                f"{self._folder}: the disk is full. Everything that was saved is safe. Free some "
                "space or lower hardware.shard_cache_gb, then run the same command again."
            ) from None
        finally:
            with self._changed:
                del self._incoming[path.name]
                self._changed.notify_all()
        raise PionError(
            f"{shard.name} was downloaded {ATTEMPTS} times, but never had the sha256 "
            f"{shard.sha256[:12]}… of its manifest ({_place(shard)}). Everything that was saved is "
            "safe. Run the same command again, or prepare the data again if the source has changed."
        )

    def _wait_for_room(self, path: Path, shard: Shard) -> None:
        """Make room for a shard that is needed now; reserve the room even beyond the budget."""
        with self._changed:
            while not self._make_room(path, shard) and self._incoming:
                self._changed.wait()  # once a download has arrived, it may be evicted
            self._incoming[path.name] = shard.bytes

    def _make_room(self, path: Path, shard: Shard) -> bool:
        """Delete files that are not needed next, least recently used first, until `shard` fits.

        Returns whether it fits. If so, the room is reserved until `_obtain` is done.
        """
        with self._changed:
            files = self._files()
            taken = sum(size for _, size, _ in files) + sum(self._incoming.values())
            excess = taken + shard.bytes - self.budget_bytes
            for last_used, size, file in files:
                if excess <= 0:
                    break
                others = file.name not in self._verified
                in_use = others and time.time() - last_used < IN_USE_SECONDS
                if not in_use and file.name not in (*self._wanted, self._in_hand):
                    self._release(file.name)
                    self._verified.discard(file.name)
                    file.unlink(missing_ok=True)
                    excess -= size
            if excess <= 0:
                self._incoming[path.name] = shard.bytes
            return excess <= 0

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, file) of every cached shard, least recently used first."""
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.is_file() and path.suffix != ".lock":
                    files.append((status.st_atime, status.st_size, path))
        return sorted(files)

    def _release(self, name: str) -> None:
        if name in self._releases:
            self._releases[name]()


class CachedStream(RowStream):
    """A RowStream that tells a ShardCache which shards its next rows are in.

    Raises BadInput if the cache is too small for one window of shards: it would fetch the same
    shards repeatedly.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Rows, RowOrder]],
        weights: Sequence[float] | PhasedOrder,
        seed: int,
        cache: ShardCache,
        documents: int | None = None,
    ) -> None:
        super().__init__(sources, weights, seed, documents)
        self._cache = cache
        self._manifests = [rows.manifest for rows, _ in sources]
        remote = [[s for s in manifest.shards if s.remote] for manifest in self._manifests]
        window = sum(
            sum(nlargest(order.window, (shard.bytes for shard in shards)))
            for shards, (_, order) in zip(remote, sources)
        )
        if not any(s.remote["repo"] for shards in remote for s in shards if s.remote):
            # Without this cache, all shards of a run's store were on this disk.
            cache.budget_bytes = max(window, cache.budget_bytes)
        if window > cache.budget_bytes:
            raise BadInput(
                f"hardware.shard_cache_gb is {cache.budget_bytes / 1e9:g}, but the shards whose "
                f"rows are shuffled together take {window / 1e9:.3g} GB. Raise "
                "hardware.shard_cache_gb or lower data.window."
            )
        # By the mean: one tiny shard would make each batch look at all shards.
        sizes = [shard.bytes for shards in remote for shard in shards]
        self._ahead = 1 + cache.budget_bytes * len(sizes) // max(1, sum(sizes))
        for rows, _ in sources:
            for shard in rows.manifest.shards:
                cache.on_evict(shard, rows.release)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows with these numbers; meanwhile, fetch the shards of the following rows."""
        upcoming = self.upcoming_shards(min(indices), self._ahead)
        shards = [self._manifests[source].shards[number] for source, number in upcoming]
        self._cache.want([shard for shard in shards if shard.remote])
        return super().batch(indices)


def _place(shard: Shard) -> str:
    where = shard.remote or {}
    return f"{where.get('repo') or 'in the store'}: {where.get('path', shard.name)}"


# ---------------------------------------------------------------- locks and stamps


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Prevent every other thread and process from fetching `path` too.

    Yields the file that says which content of `path` was right, so that it is hashed once a
    machine.
    """
    lock = path.with_suffix(".lock")
    try:
        descriptor = open_private(str(lock), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise unwritable(lock, error) from None
    with open(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _stamp_of(path: Path, shard: Shard) -> bytes:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {shard.sha256}".encode()


def _write_stamp(stamp: BinaryIO, path: Path, shard: Shard) -> None:
    with suppress(OSError):  # without a stamp, the file is hashed again
        stamp.truncate(0)
        stamp.seek(0)
        stamp.write(_stamp_of(path, shard))
