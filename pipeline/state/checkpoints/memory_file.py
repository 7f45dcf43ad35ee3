"""Where the memory of a snapshot is, for another process of the same user on the same machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryFile:
    """An anonymous file that a process has open.

    `machine` tells machines apart, and containers on one machine: a process id means nothing in
    another one. `device` and `inode` tell files apart.
    """

    machine: str
    pid: int
    fd: int
    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, fd: int) -> MemoryFile:
        """Return where this process has the file."""
        about = os.fstat(fd)
        return cls(machine(), os.getpid(), fd, about.st_dev, about.st_ino, about.st_size)

    def open(self) -> int | None:
        """Return a descriptor that this process can read and write, which the caller closes.

        Return None if this process can't open the file: on another machine, in another container,
        or where the system forbids it. A file that is not the expected one is not opened either.
        """
        if not self.machine or self.machine != machine():
            return None
        try:
            fd = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        about = os.fstat(fd)
        found = (about.st_dev, about.st_ino, about.st_size)
        if found == (self.device, self.inode, self.size) and about.st_uid == os.geteuid():
            return fd
        os.close(fd)
        return None


def machine() -> str:
    """Return what tells machines and containers apart; nothing if the system does not say it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
