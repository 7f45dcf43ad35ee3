"""Who owns what: each matrix has one owner, and the work is divided evenly."""

import pytest

from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from pion.model.params_and_flops import shapes_and_roles
from pion.train.optimizer import muon_rounds
from pion.train.optimizer.muon import newton_schulz_flops
from pion.train.optimizer.muon_rounds import Shape, deal_matrices, each_matrix, rounds_of


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


@pytest.mark.parametrize(
    ("most", "rounds"), [(16, [[[0], [1]], [[], [2, 3]]]), (36, [[[0], [1, 2, 3]]])]
)
def test_a_round_has_no_more_elements_than_it_may_have_or_one_matrix(monkeypatch, most, rounds):
    monkeypatch.setattr(muon_rounds, "BATCH_ELEMENTS", most)
    assert rounds_of([(4, 4), (3, 3), (2, 2), (2, 2)], 2) == rounds
    assert rounds_of([], 2) == []


def test_the_matrices_of_a_stack_count_one_by_one():
    assert each_matrix([(4, 2, 3), (5, 6)]) == ((2, 3), (2, 3), (2, 3), (2, 3), (5, 6))
