"""The least that a run can cost if all spells are known in advance."""

from __future__ import annotations

import itertools
import random

import pytest

from pipeline.rent.replay.deadline import least_cost
from pipeline.rent.replay.simulate import Paid

WORK, BOOT, PRICES = 1000.0, 60.0, (0.2, 0.4)


def least(spells: list[float]) -> Paid:
    return least_cost(WORK, BOOT, PRICES, spells)


def test_without_spot_it_is_one_machine_on_demand() -> None:
    assert least([]) == Paid(0.0, 1060.0)


def test_the_longest_spells_are_used_first_and_no_longer_than_needed() -> None:
    assert least([300.0, 2000.0]) == Paid(1060.0, 0.0)
    assert least([300.0, 860.0]) == Paid(860.0 + 260.0, 0.0)


def test_a_spell_whose_boot_costs_more_than_it_saves_is_left_out() -> None:
    assert least([860.0, 119.0]) == Paid(860.0, 260.0)
    assert least([860.0, 121.0]) == Paid(981.0, 199.0)


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_spells_is_cheaper(seed: int) -> None:
    rng = random.Random(seed)
    spells = [rng.uniform(10.0, 600.0) for _ in range(6)]
    best = least(spells).dollars(*PRICES)
    for count in range(len(spells) + 1):
        for chosen in itertools.combinations(spells, count):
            can = sum(max(spell - BOOT, 0.0) for spell in chosen)
            done = min(can, WORK)
            left = WORK - done
            paid = Paid(done + BOOT * count, left + BOOT if left else 0.0)
            assert paid.dollars(*PRICES) >= best - 1e-12
