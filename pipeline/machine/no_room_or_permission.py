"""Tells a failure of the machine (no room, no permission) from a bug in Pion."""

from __future__ import annotations

import errno
import os
import sys

from pion.errors import BadInput, PionError

_USED_UP = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f)",
    errno.EMFILE: "this process has too many open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.ENOMEM: "this machine has too little memory",
    errno.EAGAIN: "this user may start no more processes (ulimit -u)",
    errno.EIO: "the disk can't be read or written (input/output error)",
}
_FORBIDDEN = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
}
_NO_MEMORY = "this machine has too little memory, or this process may use no more (ulimit -v)"
# What Python, torch and the loader of libraries say where they raise RuntimeError or ImportError.
_WORDS = {
    "can't start new thread": "this user may start no more threads (ulimit -u), or this process "
    "may use no more memory (ulimit -v)",
    "failed to map segment": _NO_MEMORY,
    "cannot allocate memory": _NO_MEMORY,
    "can't allocate memory": "this machine has too little memory",
    "out of memory": "this machine has too little memory",
}
_SAFE = "Everything that was committed is safe."


def refusal(error: BaseException) -> PionError | None:
    """Return what to tell a person if the machine refused something; None for any other error.

    A missing permission is bad input: another path or user would work.
    """
    locale = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and error.encoding == locale != "utf-8":
        return BadInput(
            f"{error.object}: this locale has only {locale} characters, so no file can have that "
            f"name. {_SAFE} Set PYTHONUTF8=1, then run the same command again."
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return BadInput(f"{str(error.filename)[:80]}… is too long for the name of a file. {_SAFE}")
    path = error.filename if isinstance(error, OSError) else None
    where = "" if path is None else f"{path if isinstance(path, int) else os.fsdecode(path)}: "
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return BadInput(
            f"{where}{_FORBIDDEN[error.errno]}. {_SAFE} Check who owns the path, or name a "
            "different path. Then run the same command again."
        )
    reason = _used_up(error)
    if reason is None:
        return None
    return PionError(f"{where}{reason}. {_SAFE} Make room, then run the same command again.")


def _used_up(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, OSError):
        return _USED_UP.get(error.errno or 0)
    if isinstance(error, RuntimeError | ImportError):
        said = str(error).lower()
        return next((reason for words, reason in _WORDS.items() if words in said), None)
    return None
