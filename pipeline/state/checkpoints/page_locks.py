"""Memory that a card copies into directly, several times as fast: its pages are locked."""

from __future__ import annotations

from collections.abc import Iterable

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
