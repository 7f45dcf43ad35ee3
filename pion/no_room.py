"""Says what is used up where a file has no room: bytes, files or a quota."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def no_room(error: OSError, path: Path, needs: int = 0) -> str | None:
    """Return what is used up on the disk of `path`, a file that could not be written; None if
    `error` has another cause. `needs` is the file's size in bytes, 0: not known."""
    if error.errno == errno.EDQUOT:
        return f"the disk quota is used up{_amounts(None, needs)}"
    if error.errno != errno.ENOSPC:
        return None
    try:
        disk = os.statvfs(next(p for p in path.absolute().parents if p.exists()))
    except OSError:
        return f"the disk is full{_amounts(None, needs)}"
    if disk.f_files and not disk.f_favail:
        return "the disk is full: it can hold no more files, though it has free bytes (see `df -i`)"
    return f"the disk is full{_amounts(disk.f_bavail * disk.f_frsize, needs)}"


def _amounts(free: int | None, needs: int) -> str:
    """Return the sizes, as far as they explain the failure: somebody may have made room since."""
    known = [f"this file needs {_size(needs)}"] if needs else []
    known += [f"{_size(free)} are free"] if free is not None and free < needs else []
    return f" ({', '.join(known)})" if known else ""


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
