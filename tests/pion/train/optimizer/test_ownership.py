"""Who owns what: each matrix and each element has one owner, and the work is divided evenly."""

from itertools import pairwise

import pytest

from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from pion.model.params_and_flops import shapes_and_roles
from pion.train.optimizer.moments import each_matrix
from pion.train.optimizer.muon import newton_schulz_flops
from pion.train.optimizer.ownership import (
    Shape,
    deal_matrices,
    even_parts,
    even_rows,
    muon_rounds,
)
from pion.train.optimizer.rule import ALIGNED_TO


def matrices(preset) -> tuple[Shape, ...]:
    roles = shapes_and_roles(ModelConfig.preset(preset))
    return each_matrix([shape for shape, role in roles if role == "matrix"])


def busiest_share(shapes, ranks):
    """Return the share of Muon's arithmetic that the busiest rank has."""
    flops = [newton_schulz_flops(*shape) for shape in shapes]
    loads = [sum(flops[n] for n in numbers) for numbers in deal_matrices(shapes, ranks)]
    return max(loads) / sum(loads)


def test_every_matrix_has_one_owner_and_the_largest_are_dealt_first():
    shapes = [(8, 8), (8, 24), (24, 8), (4, 4), (8, 8)]
    owned = deal_matrices(shapes, 2)
    assert sorted(number for numbers in owned for number in numbers) == list(range(5))
    assert {1, 2} == {owned[0][0], owned[1][0]}, "the two with the most arithmetic"
    loads = [sum(newton_schulz_flops(*shapes[n]) for n in numbers) for numbers in owned]
    assert max(loads) - min(loads) <= newton_schulz_flops(8, 8)


def test_more_ranks_than_matrices_leave_some_without_any():
    assert sorted(map(len, deal_matrices([(2, 2)], 3))) == [0, 0, 1]
    assert deal_matrices([], 2) == [[], []]


# The fewest matrices of all presets, and many of experts. Dealing those of all takes seconds.
OFTEN = ("daisy-pico", "tachyon-tiny")


@pytest.mark.parametrize(
    "preset",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.soak) for name in PRESETS],
)
def test_of_8_cards_none_has_over_a_sixth_of_muons_arithmetic_and_of_64_its_share_and_one_matrix(
    preset,
):
    shapes = matrices(preset)
    assert busiest_share(shapes, 8) <= 1 / 6
    flops = [newton_schulz_flops(*shape) for shape in shapes]
    assert busiest_share(shapes, 64) * sum(flops) <= sum(flops) / 64 + max(flops)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_every_element_has_one_owner_and_parts_begin_where_kernels_do(ranks):
    sizes, units = [1000, 7, 64, 1, 4097, 1760], [ALIGNED_TO] * 5 + [176]
    owned = even_parts(sizes, ranks, units)
    assert len(owned) == ranks
    for index, (size, unit) in enumerate(zip(sizes, units, strict=True)):
        parts = [part for parts in owned for part in parts if part.index == index]
        assert parts[0].start == 0
        assert parts[-1].stop == size
        assert all(one.stop == other.start for one, other in pairwise(parts))
        assert all(part.start % unit == 0 for part in parts)
    most = max(sum(part.stop - part.start for part in parts) for parts in owned)
    assert most <= sum(sizes) / ranks + sum(units)


def test_one_rank_owns_every_tensor_whole():
    (parts,) = even_parts([1000, 7], 1, [64, 64])
    assert [(part.start, part.stop) for part in parts] == [(0, 1000), (0, 7)]


def test_rows_stay_whole():
    assert even_rows(5, 3) == [range(1), range(1, 3), range(3, 5)]
    assert [len(rows) for rows in even_rows(2, 3)] == [0, 1, 1]


def test_a_round_has_no_more_elements_than_it_may_have_or_one_matrix():
    owned, sizes = [[0, 1, 2], [3]], [10, 4, 4, 8]
    assert muon_rounds(owned, sizes, most=8) == [[[0], [3]], [[1, 2], []]]
    assert muon_rounds(owned, sizes, most=18) == [[[0, 1, 2], [3]]]
    assert muon_rounds([[], []], [], most=8) == []
