"""A recorded market in seconds: the next machine, and the spells until a deadline."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.rent.replay.market import Market
from pipeline.rent.replay.traces import Trace


def market(*there: int) -> Market:
    return Market(Trace("invented", 10.0, tuple(bool(flag) for flag in there)))


def test_in_the_middle_of_a_tick_the_machine_of_that_tick_is_there() -> None:
    found = market(0, 1, 1, 0)
    assert found.next_machine(3.0) == (10.0, 30.0)
    assert found.next_machine(15.0) == (15.0, 30.0)
    assert found.next_machine(30.0) == (50.0, 70.0)


def test_a_spell_over_the_end_of_the_trace_is_one_spell() -> None:
    found = market(1, 0, 1, 1)
    assert found.next_machine(0.0) == (0.0, 10.0)
    assert found.next_machine(25.0) == (25.0, 50.0)
    assert found.next_machine(45.0) == (45.0, 50.0)
    assert found.next_machine(50.0) == (60.0, 90.0)


def test_a_machine_that_is_always_there_is_never_lost() -> None:
    assert market(1, 1).next_machine(7.0) == (7.0, math.inf)
    assert market(1, 1).spells(7.0, 99.0) == [92.0]


@pytest.mark.parametrize("seed", range(5))
def test_at_every_tick_it_says_what_the_trace_says(seed: int) -> None:
    rng = random.Random(seed)
    trace = Trace("invented", 32.0, (True, *(rng.random() < 0.6 for _ in range(40)), False))
    for tick in range(2 * len(trace.available)):
        first, stay = trace.next_machine(tick)
        assert first is not None
        expected = (32.0 * first, 32.0 * first + stay)
        assert Market(trace).next_machine(32.0 * tick) == expected


def test_spells_are_cut_off_at_both_ends() -> None:
    assert market(0, 1, 1, 0).spells(15.0, 95.0) == [15.0, 20.0, 5.0]
    assert market(0, 1, 1, 0).spells(30.0, 50.0) == []
