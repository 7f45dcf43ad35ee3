"""Ranges of memory become ranges of whole pages: CUDA refuses to lock a page twice."""

from __future__ import annotations

import pytest

from pipeline.state.checkpoints.memory_file import _pages


@pytest.mark.parametrize(
    ("ranges", "pages"),
    [
        ([], []),
        ([(4096, 1)], [(4096, 4096)]),
        ([(5000, 100), (8000, 200)], [(4096, 8192)]),  # the second begins in the first one's page
        ([(8192, 10), (0, 10)], [(0, 4096), (8192, 4096)]),
        ([(0, 4096), (4096, 4096)], [(0, 8192)]),
        ([(0, 20_000), (4096, 10)], [(0, 20_480)]),
    ],
)
def test_no_page_is_in_two_ranges(
    ranges: list[tuple[int, int]], pages: list[tuple[int, int]]
) -> None:
    assert _pages(ranges) == pages
