"""Places in which a fork (tests/support/forked.py) can put a command: small disks, other users,
low limits.
"""

import ctypes
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.state.stores import FileStore, StoreError
from tests.support.forked import Ended, pion
from tests.support.whole_runs import final_weights

PAGE = 4096
ROOMY = 64 << 20
# Linux's numbers, from sched.h and mount.h.
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_REMOUNT, _PRIVATE_BELOW = 0x20, 0x40000 | 0x4000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class OnSmallDisk:
    """A run on a disk with little room, and the same run after the disk grew.

    Attributes:
        first: how the command ended on the small disk.
        partial: what it left there that is neither complete nor a lock.
        again: how the same command ended with room.
        weights: the final weights after that, by stage.
        used: the bytes in each file of the disk at the end.
    """

    first: Ended
    partial: list[str]
    again: Ended
    weights: Mapping[str, str]
    used: Mapping[str, int]


def run_on_small_disk(job, size):
    """Run the job with its store and `publish.to` on a new disk of `size` bytes; then give the disk
    room, and run the job again. Only this process can see the disk.

    The run does not look for room before it starts: the disk is one that others fill meanwhile.
    """
    import pipeline.run.preflight

    pipeline.run.preflight.free_bytes = lambda folder: None
    disk = job.parent / "disk"
    disk.mkdir(exist_ok=True)
    _own_mounts()
    _mount(disk, size)
    cheaper()
    command = ("run", str(job), f"store={disk}/runs", f"publish.to={disk}/model")
    first = pion(*command, folder=str(job.parent))
    partial = [str(path.relative_to(disk)) for path in disk.rglob("*") if _is_partial(path)]
    _mount(disk, ROOMY, _REMOUNT)
    again = pion(*command, folder=str(job.parent))
    files = [path for path in disk.rglob("*") if path.is_file()]
    used = {str(path.relative_to(disk)): path.stat().st_size for path in files}
    return OnSmallDisk(first, partial, again, final_weights(disk), used)


def why_no_small_disk():
    """Return why this machine can't mount a disk for one process; None if it can."""
    try:
        _own_mounts()
        _mount(Path("/tmp"), PAGE)
    except OSError as error:
        return f"no file system can be mounted here: {error}"
    return None


def run_limited(limits, *command, folder, user=0):
    """Run a command as `user` (0: this user) with these resource limits."""
    cheaper()
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    return pion(*command, folder=folder)


def cheaper():
    """Replace slow parts of a run that hardly write: how fast this CPU is, what a plot shows, and
    the import of transformers."""
    import pion.formats.verify
    import pion.train.hardware
    import pipeline.report.plots

    def flops(*arguments):
        return 1e11

    def verified(*arguments, **options):
        return 0.0

    def plot(*arguments):
        return bytes(30_000)

    pion.train.hardware._measured_flops = flops
    pion.formats.verify.verify_export = verified
    pipeline.report.plots.loss_plot = plot


def _is_partial(path):
    words = (".partial", ".previous", ".new", ".tmp", ".old")
    return path.is_file() and any(word in str(path) for word in words)


def _own_mounts():
    """Give this process a mount namespace; a user who is not root becomes root inside it."""
    me, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_MOUNTS | (_NEW_USERS if me else 0))
    if me:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {me} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", None, b"/", None, _PRIVATE_BELOW, None)


def write_on_full_disks(folder):
    """Return why a file of three pages can't be written to a store on a disk with two free pages,
    and to a store on a disk with room for bytes, but not for another file."""
    _own_mounts()
    reasons = []
    for options in (f"size={2 * PAGE}", f"size={ROOMY},nr_inodes=2"):
        disk = folder / str(len(reasons))
        disk.mkdir()
        _call("mount", b"tmpfs", bytes(disk), b"tmpfs", 0, options.encode())
        store = FileStore(disk)
        try:
            for name in ("a", "b"):
                store.write(name, bytes(3 * PAGE))
        except StoreError as error:
            reasons.append(error.reason)
    full, no_inodes = reasons
    return full, no_inodes


def _mount(place, size, flags=0):
    _call("mount", b"tmpfs", bytes(place), b"tmpfs", flags, f"size={size}".encode())


def _call(function, *arguments):
    if getattr(_libc, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
