"""A kernel counts the sectors of memory that it touches, each once."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Identity, ModularIndexing

from tests.cuda_rehearsal.touched import SECTOR, addresses_of, touched

ROW, HEAD, TOKEN, LANE = VARIABLES = sympy.symbols("d0 d1 d2 d3", integer=True, nonnegative=True)
VALUE = sympy.Symbol("tmp0", integer=True)


class Load(NamedTuple):
    index: Any
    var_names: tuple[sympy.Symbol, ...]
    size: tuple[sympy.Expr, ...]


def access(index: Any, *sizes: int) -> Load:
    return Load(index, VARIABLES[: len(sizes)], tuple(map(sympy.Integer, sizes)))


def one_by_one(accesses: list[Load], width: int) -> int:
    """Return the bytes of all sectors, found by looking at each address."""
    sectors = set()
    for each in accesses:
        for place in itertools.product(*(range(int(size)) for size in each.size)):
            values = dict(zip(each.var_names, place, strict=True))
            sectors.add(int(each.index.expand(identity=True).subs(values)) * width // SECTOR)
    return len(sectors) * SECTOR


# Queries of 3 heads, and keys of 1, in rows of 5 heads with 32 numbers each.
QUERIES = access(160 * ROW + 32 * HEAD + TOKEN, 4, 3, 32)
HALVES_SWAPPED = access(
    160 * ROW + 32 * HEAD - 16 * FloorDiv(TOKEN, 16) + ModularIndexing(TOKEN, 1, 16) + 16, 4, 3, 32
)
KEYS = access(160 * ROW + HEAD + 96, 4, 32)

CASES = {
    "a part of each row": [QUERIES],
    "the same part, twice, in another order": [QUERIES, HALVES_SWAPPED],
    "two parts of each row": [QUERIES, KEYS],
    "the left and the right half": [access(32 * ROW + HEAD + part, 8, 16) for part in (0, 16)],
    "one number for each row": [access(64 * ROW, 8)],
    "one row for all rows": [access(HEAD, 8, 64)],
    "every second number": [access(2 * ROW, 64)],
    "numbers of rows that are no whole sectors": [access(20 * ROW + HEAD, 8, 10)],
    "the columns of each row first": [access(ROW + 64 * HEAD, 32, 8)],
    "rows of a matrix that is one of several": [access(64 * Identity(ROW) + HEAD, 8, 32)],
    "windows that overlap": [access(16 * ROW + HEAD, 8, 32)],
}


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_counts_each_sector_that_it_touches_once(name: str, width: int) -> None:
    assert touched(CASES[name], 1 << 20, width) == one_by_one(CASES[name], width)


def test_a_part_of_a_large_buffer_is_counted_without_looking_at_each_address() -> None:
    rows = 16 * 2048
    queries = access(896 * ROW + HEAD, rows, 640)
    assert touched([queries], rows * 896, 2) == rows * 640 * 2


def test_a_buffer_counts_at_most_as_a_whole() -> None:
    # As in a kernel that joins tensors: what is beyond the buffer is not loaded.
    assert touched([access(64 * ROW + HEAD, 8, 192)], 512, 4) == 512 * 4
    assert touched([QUERIES, access(ROW, 640)], 640, 2) == 640 * 2


def test_where_values_decide_each_load_counts() -> None:
    looked_up = access(64 * VALUE + HEAD, 8, 64)
    assert addresses_of(looked_up) is None
    assert touched([looked_up], 1 << 20, 4) == 8 * 64 * 4
    assert touched([looked_up], 256, 4) == 256 * 4
