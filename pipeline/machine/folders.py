"""Folders of this user on this machine: the home folder, private folders, and what lies there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pion.files import cache_folder, private_cache_folder

_FILE = 0o600
BENCH, _COMPILED = "bench", "torch-compile"
# Environment variable of torch. Triton's kernels lie in the same folder.
COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def open_private(path: str, flags: int) -> int:
    """Open a file; a new file is for this user alone. An `opener` for `open`."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE)


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold a private lock file against the other processes and threads of this user.

    The lock of a process that died is free. The file stays: if it were removed, two processes could
    lock two different files. Raises OSError.
    """
    with open(lock, "ab", opener=open_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_bytes(folder: Path) -> int | None:
    """Return how many bytes this user may write to the disk of `folder`, which may not exist yet.

    None if the file system does not say.
    """
    try:
        found = os.statvfs(folder)
    except (FileNotFoundError, NotADirectoryError):  # it may be deleted at any time
        return free_bytes(folder.parent)
    if found.f_blocks == 0:
        return None
    blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail  # root may use the reserve
    return blocks * found.f_frsize


def own_bench_files() -> list[Path]:
    """Return the files with this user's results of `pion bench`."""
    return sorted((cache_folder() / BENCH).glob("*.json"))


def compile_cache_folder() -> Path:
    """Return torch.compile's folder, which may not exist yet: the user's choice, or ours."""
    chosen = os.environ.get(COMPILE_CACHE)
    return Path(chosen) if chosen else cache_folder() / _COMPILED


def use_private_compile_cache() -> None:
    """Let torch.compile use a private folder in this process, unless the user has chosen one.

    Raises BadInput if the folder can't be made private.
    """
    if not os.environ.get(COMPILE_CACHE):
        os.environ[COMPILE_CACHE] = str(private_cache_folder(_COMPILED))
