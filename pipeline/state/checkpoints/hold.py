"""Tell the owner of a run that a reader needs a checkpoint, on the disk that both use.

In a store on a disk of this machine, replaced checkpoints would fill the disk that the run trains
on. There they are deleted before the hour is over, unless a process holds them. A hold is a shared
lock on the checkpoint's manifest, which ends with its process at the latest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.machine.folders import free_bytes
from pipeline.state.checkpoints.layout import MANIFEST
from pipeline.state.stores import Store

# File systems whose locks all readers see, because all readers are on this machine.
_OWN_DISKS = frozenset(
    {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
)
# So many replaced checkpoints stay there after a save, without those that are held. The older one
# makes room for the next save. If there still is no room, so does the newer one.
STAYS = 2
# The manifests that this process holds, by path, and their descriptors.
_held: dict[Path, int] = {}


def hold(store: Store, key: str) -> None:
    """Keep the checkpoint at `key` of the store from being deleted before its hour is over.

    It is held until this process ends. A checkpoint that is gone is not held; whoever reads it then
    finds out. Of a store that is not a folder, nothing is deleted early.
    """
    folder = store.local_path(key)
    if folder is None or folder / MANIFEST in _held:
        return
    with contextlib.suppress(OSError):
        # A pipe in its place must not be waited for.
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is being deleted, or this file system has no locks
            os.close(descriptor)
        else:
            _held[folder / MANIFEST] = descriptor


def deletes_early(store: Store, run: str) -> bool:
    """Return whether the checkpoints of `run` are on a disk that only this machine reads."""
    folder = store.local_path(run)
    if folder is None:
        return False
    kinds = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    here = folder.resolve()
    return next((kinds[p] for p in (here, *here.parents) if p in kinds), None) in _OWN_DISKS


def has_room(store: Store, run: str, needed: int) -> bool:
    """Return whether the disk of `run`, in a folder, has that many bytes free, or does not say."""
    folder = store.local_path(run)
    assert folder is not None
    with contextlib.suppress(OSError):
        free = free_bytes(folder)
        return free is None or free >= needed
    return True


@contextlib.contextmanager
def unless_held(store: Store, key: str) -> Iterator[bool]:
    """Yield whether the checkpoint at `key` may be deleted now. Nobody can hold it meanwhile.

    What has no manifest is no checkpoint that somebody could read.
    """
    folder = store.local_path(key)
    assert folder is not None
    with contextlib.ExitStack() as closing:
        free = True
        try:
            file = closing.enter_context(open_file(folder / MANIFEST))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BadInput, FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            free = False
        yield free
