"""A store in a folder: atomic renames, fsync, and a lock for compare-and-swap."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import mmap
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pion.errors import BadInput, no_room
from pion.untrusted import LARGEST_RECORD, read_file
from pipeline.state.record_json import damaged
from pipeline.state.stores.base import (
    Conflict,
    Data,
    Entries,
    Entry,
    Missing,
    Names,
    Store,
    StoreError,
    check_count,
    check_key,
    is_key,
    too_large,
)

_TEMPORARY = ".tmp-"
_LOCK = ".lock-"
# Files of at least this size are written past the page cache.
_LARGE_BYTES = 32 << 20

_REASONS = {
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f)",
    errno.EACCES: "no permission; check who owns the folder",
    errno.EPERM: "no permission; check who owns the folder",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "this process has too many open files (ulimit -n)",
    errno.EAGAIN: "this user may start no more processes (ulimit -u)",
    errno.ENOMEM: "this machine has too little memory",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.ENOENT: "part of the path is gone, or is a link that leads nowhere",
    errno.ELOOP: "part of the path is a link that leads to itself",
}
_NOTHING_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextlib.contextmanager
def explained(action: str, path: Path, needs: int = 0) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` with a reason that a person understands. `needs` is the
    size in bytes of the file to write, 0: not known."""
    try:
        yield
    except OSError as error:
        full = no_room(error, path, needs)
        if full is not None:
            raise StoreError(action, str(path), f"{full}; free some space") from error
        reason = _REASONS.get(error.errno or 0) or os.strerror(error.errno or errno.EIO)
        raise StoreError(action, str(path), reason) from error


class FileStore(Store):
    """Keys are files below `folder`. Safe with any number of processes on one machine.

    Files whose names start with a dot are not keys: they are temporary files of writes in progress,
    and lock files for `compare_and_swap`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.url = f"file://{self.folder}"

    def read(self, key: str, limit: int = LARGEST_RECORD) -> bytes:
        path = self._path(key)
        with explained("read", path):
            try:
                return read_file(path, limit)
            except _NOTHING_THERE:
                raise Missing(key, self.url) from None
            except BadInput:
                if path.is_dir():
                    raise Missing(key, self.url) from None
                if path.is_file():
                    raise too_large(str(path), limit) from None
                raise damaged(str(path), "it is not a regular file") from None

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, _version(data)

    def write(self, key: str, data: Data) -> None:
        path = self._path(key)
        with explained("write", path, _size(data)):
            _write_atomically(path, data)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        path = self._path(key)
        with explained("write", path, len(data)), _locked(path):
            try:
                present = _version(self.read(key))
            except Missing:
                present = None
            if present != expected:
                raise Conflict(key, self.url)
            _write_atomically(path, data)
        return _version(data)

    def delete(self, key: str) -> None:
        path = self._path(key)
        lock = path.with_name(_LOCK + path.name)
        with explained("delete", path):
            try:
                if not lock.exists():
                    path.unlink()
                else:
                    with _locked(path):
                        path.unlink()
                        lock.unlink()
            except _NOTHING_THERE:
                return
        # A store has keys, not folders, so leave no empty folder behind.
        with contextlib.suppress(OSError):  # the first folder that is not empty
            for parent in itertools.takewhile(lambda parent: parent != self.folder, path.parents):
                parent.rmdir()

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        source = self._path(key)
        if not source.is_file():
            raise Missing(key, self.url)
        if limit is not None and source.stat().st_size > limit:
            raise too_large(str(source), limit)
        with explained("write", path, _size(source)):
            _write_atomically(path, source)
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

    def local_path(self, key: str) -> Path | None:
        return self._path(key) if key else self.folder

    def sweep_unfinished(self, prefix: str, before: float) -> int:
        removed = 0
        for path in self._walk(prefix):
            if path.name.startswith(_TEMPORARY):
                with contextlib.suppress(FileNotFoundError), explained("delete", path):
                    if path.stat().st_mtime < before:
                        path.unlink()
                        removed += 1
        return removed

    def list(self, prefix: str = "") -> Entries:
        entries = []
        for path in self._walk(prefix):
            key = path.relative_to(self.folder).as_posix()
            if key.startswith(prefix) and not path.name.startswith("."):
                with contextlib.suppress(OSError):  # it is gone, or a link that leads nowhere
                    entries.append(Entry(key, path.stat().st_size))
        return sorted(entries, key=lambda entry: entry.key)

    def folders(self) -> Names:
        folder, names = self.folder, []
        with explained("list", folder):
            try:
                with os.scandir(folder) as children:
                    for child in filter(_is_folder, children):
                        names.append(child.name)
                        check_count(len(names), str(folder), f"{folder}/runs")
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in names if is_key(name))

    def probe(self, prefix: str) -> str:
        key = f"{prefix}probe-{uuid.uuid4().hex}"
        try:
            self.write(key, b"")
            self.delete(key)
            return ""
        except StoreError as error:
            raise BadInput(f"{error} Nothing was started.") from error

    def _path(self, key: str) -> Path:
        return self.folder / check_key(key)

    def _walk(self, prefix: str) -> Iterator[Path]:
        """Yield every file in the folder that holds `prefix`, and below."""
        parent = prefix.rpartition("/")[0]
        pending = [self._path(parent) if parent else self.folder]
        while pending:
            folder = pending.pop()
            with explained("list", folder):
                try:
                    children = list(os.scandir(folder))
                except (FileNotFoundError, NotADirectoryError):
                    continue
            for child in children:
                if child.is_dir(follow_symlinks=False):
                    pending.append(Path(child.path))
                else:
                    yield Path(child.path)


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself, or to where this user may not look
        return False


def _size(data: Data) -> int:
    """Return the bytes to write; 0 for a file that can't be read."""
    if isinstance(data, Path):
        return data.stat().st_size if data.is_file() else 0
    return memoryview(data).nbytes


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path`'s lock against other threads and processes. The lock of a dead process is free.

    Who deletes `path` deletes the lock file, too, while it holds the lock. Then another process may
    have waited for a file that is gone, and takes the new one.
    """
    while True:
        with create(path.with_name(_LOCK + path.name), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:
                yield
                return


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. At the end, what is there replaces `path`; after an
    error, it is removed. The block itself syncs what it writes. Raises `StoreError`."""
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
        with explained("write", path):
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_atomically(path: Path, data: Data) -> None:
    with replacing(path) as temporary, create(temporary, "xb") as file:
        if isinstance(data, Path):
            with data.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        else:
            view = memoryview(data)
            if len(view) >= _LARGE_BYTES:
                view = view[write_directly(file.fileno(), view) :]
            file.write(view)
        file.flush()
        os.fsync(file.fileno())


_PAGE = 4096
_AT_ONCE = 16 << 20


def write_directly(descriptor: int, data: memoryview) -> int:
    """Write the whole pages at the start of `data` to a new, empty file. Return the bytes written.

    Fewer bytes are written if direct access is refused. The caller writes the rest in the usual
    way. Raises `OSError`.
    """
    size, position = len(data) // _PAGE * _PAGE, 0
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        while position < size:
            position += os.write(descriptor, data[position : min(position + _AT_ONCE, size)])
    except OSError as error:
        if error.errno != errno.EINVAL:  # no direct access here, or `data` is not page-aligned
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return position


def read_directly(path: Path) -> Iterator[memoryview]:
    """Yield the file's content in pieces. Each piece is valid until the next one. Raises
    `OSError`."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, flags)
    try:
        # Aligned to pages, and no larger than needed: the kernel fills all of it with zeros.
        needed = (os.fstat(descriptor).st_size // _PAGE + 1) * _PAGE
        memory = memoryview(mmap.mmap(-1, min(_AT_ONCE, needed)))
        while count := os.readv(descriptor, [memory]):
            yield memory[:count]
    finally:
        os.close(descriptor)


def create(path: Path, mode: Literal["ab", "xb"]) -> BinaryIO:
    """Create the folder and open the file in it; retry if a `delete` just removed the empty
    folder."""
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            _make_folder(path.parent)
            return path.open(mode)
    return path.open(mode)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's file names survive a power cut, if the file system supports this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
