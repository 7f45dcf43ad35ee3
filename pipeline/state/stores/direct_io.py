"""Write and read large files past the page cache.

Through the cache, writing a checkpoint takes several times as much CPU time, which training needs.
It also pushes the training data out of the cache. File systems without direct access (O_DIRECT) use
the cache.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

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
        memory = memoryview(mmap.mmap(-1, _AT_ONCE))  # aligned to pages
        while count := os.readv(descriptor, [memory]):
            yield memory[:count]
    finally:
        os.close(descriptor)
