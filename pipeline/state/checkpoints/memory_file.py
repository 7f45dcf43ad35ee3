"""The memory of a snapshot: where another process of the same user on the same machine finds it,
and its locked pages, into which a card copies directly, several times as fast."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.machine.rented import boot_id
from pipeline.state.owner import pid_namespace


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
        identity = (about.st_dev, about.st_ino, about.st_size)
        if identity == (self.device, self.inode, self.size) and about.st_uid == os.geteuid():
            return fd
        os.close(fd)
        return None


def machine() -> str:
    """Return what tells machines and containers apart; nothing if the system does not say it."""
    here = (boot_id(), pid_namespace())
    return " ".join(here) if all(here) else ""


# ---------------------------------------------------------------- pages that stay in memory

_PAGE = 4096


class PageLocks:
    """The ranges of host memory that this process has locked for its card."""

    def __init__(self) -> None:
        self._addresses: list[int] = []

    def lock(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Lock the pages of (address, bytes) ranges.

        If the system refuses, because locked memory is limited, copies are only slower.
        """
        import torch

        for address, size in _pages(ranges):
            if int(torch.cuda.cudart().cudaHostRegister(address, size, 0)) == 0:
                self._addresses.append(address)

    def unlock(self) -> None:
        """Unlock all. Call this before the memory is freed: otherwise CUDA would treat new memory
        at the same address as locked."""
        import torch

        while self._addresses:
            torch.cuda.cudart().cudaHostUnregister(self._addresses.pop())


def _pages(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges of whole pages that cover the ranges: no page is in two of them."""
    covered: list[tuple[int, int]] = []
    for address, size in sorted(ranges):
        first, end = address // _PAGE * _PAGE, -(-(address + size) // _PAGE) * _PAGE
        if covered and first <= sum(covered[-1]):
            begin = covered[-1][0]
            covered[-1] = (begin, max(end, sum(covered[-1])) - begin)
        else:
            covered.append((first, end - first))
    return covered
