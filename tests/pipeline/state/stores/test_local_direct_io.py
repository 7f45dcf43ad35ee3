"""Large files use direct access, or the page cache where there is no direct access."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from pipeline.state.stores import FileStore
from pipeline.state.stores.local import read_directly, write_directly

SIZES = [0, 1, 4095, 4096, 4097, 3 * 4096 + 5, (16 << 20) + 4096 + 1]
NO_DIRECT_ACCESS = Path("/proc/self/status")


def aligned(size: int) -> memoryview:
    """Return random bytes that are aligned to a page."""
    memory = mmap.mmap(-1, max(size, 1))
    memory[:size] = os.urandom(size)
    return memoryview(memory)[:size]


def read(path: Path) -> bytes:
    return b"".join(piece.tobytes() for piece in read_directly(path))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_directly_is_whole_pages_and_the_rest_follows(
    tmp_path: Path, size: int
) -> None:
    data = aligned(size)
    with (tmp_path / "file").open("xb") as file:
        written = write_directly(file.fileno(), data)
        assert written in (0, size // 4096 * 4096), "0 where the file system has no direct access"
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT
        file.write(data[written:])
    assert (tmp_path / "file").read_bytes() == data.tobytes()
    assert read(tmp_path / "file") == data.tobytes()


def test_memory_that_is_not_aligned_is_left_to_the_cache_or_written_right(tmp_path: Path) -> None:
    data = aligned(3 * 4096 + 1)[1:]
    with (tmp_path / "file").open("xb") as file:
        written = write_directly(file.fileno(), data)
        file.write(data[written:])
    assert read(tmp_path / "file") == data.tobytes()


def test_a_file_system_without_direct_access_is_read_through_the_cache() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(NO_DIRECT_ACCESS, os.O_RDONLY | os.O_DIRECT)
    assert read(NO_DIRECT_ACCESS).startswith(b"Name:")


def test_other_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
    with (tmp_path / "file").open("xb") as file:
        descriptor = os.open(file.name, os.O_RDONLY)
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_directly(descriptor, aligned(4096))
        os.close(descriptor)


@pytest.mark.parametrize("size", [32 << 20, (32 << 20) + 1])
def test_a_store_keeps_large_objects_as_they_are(tmp_path: Path, size: int) -> None:
    data = aligned(size)
    store = FileStore(tmp_path)
    store.write("a/large", data)
    store.write("b/large", data.tobytes())
    assert store.read("a/large", size) == store.read("b/large", size) == data.tobytes()
