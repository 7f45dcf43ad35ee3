"""Who owns what: each matrix has one owner, and the arithmetic is divided evenly."""

from __future__ import annotations

from pion.train.muon import newton_schulz_flops
from pion.train.ownership import deal_matrices


def test_every_matrix_has_one_owner_and_the_largest_are_dealt_first() -> None:
    shapes = [(8, 8), (8, 24), (24, 8), (4, 4), (8, 8)]
    owned = deal_matrices(shapes, 2)
    assert sorted(number for numbers in owned for number in numbers) == list(range(5))
    assert {1, 2} == {owned[0][0], owned[1][0]}, "the two with the most arithmetic"
    loads = [sum(newton_schulz_flops(*shapes[n]) for n in numbers) for numbers in owned]
    assert max(loads) - min(loads) <= newton_schulz_flops(8, 8)


def test_more_ranks_than_matrices_leave_some_without_any() -> None:
    assert sorted(map(len, deal_matrices([(2, 2)], 3))) == [0, 0, 1]
    assert deal_matrices([], 2) == [[], []]
