"""A run on a recorded spot market: what a trace says, when it saves, and what the policy does."""

import itertools
import json
import math
import random
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.replay import PRICES, least_cost, pion_small, results
from benchmarks.spot_market import (
    Costs,
    Course,
    Paid,
    Rule,
    Saves,
    Stage,
    TimedRun,
    Trace,
    read_trace,
    replay,
    terms_of,
)
from pipeline.rent.deadline.policy import HANDOVER_SECONDS, Seen, Situation
from pipeline.training.cadence import SaveCadence

HOUR, MARGIN = 3600.0, 600.0
LIFE = 2 * HOUR
START = (0, 0)


@cache
def run():
    return TimedRun([Stage(2000, 5.0), Stage(500, 2.0)], Costs(60.0, 0.5, 15.0), LIFE)


@cache
def alone():
    """Return the seconds that the run takes on one machine."""
    return run().costs.boot + run().seconds_left(START, LIFE)


def market(*spells):
    """Make a trace: seconds without a machine, then seconds with one, then without …"""
    ticks = [place % 2 == 1 for place, length in enumerate(spells) for _ in range(int(length / 10))]
    return Trace("invented", 10.0, tuple(ticks))


def course(market, start, deadline, *, greedy=False):
    return replay(run(), market, start, Rule(deadline, MARGIN, greedy))


# ---------------------------------------------------------------- traces


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 30))
def test_it_is_what_walking_through_the_ticks_finds(ticks, start):
    there = ticks * 60
    found, lost = Trace("any", 32.0, tuple(ticks)).next_machine(32.0 * start)
    if not any(ticks):
        assert found == math.inf
        return
    first = there.index(True, start)
    assert found == 32.0 * first
    assert lost == (math.inf if all(ticks) else 32.0 * there.index(False, first))


@pytest.mark.parametrize("gap", [0.1, 1 / 3, 33.3])
def test_a_machine_that_was_just_lost_is_not_found_again(gap):
    found, at = Trace("invented", gap, tuple(tick == "1" for tick in "110100111")), 0.0
    for _ in range(1000):
        there, at = found.next_machine(at)
        assert at - there > 0.9 * gap


def test_spells_are_cut_off_at_both_ends():
    assert market(10, 20, 10).spells(15.0, 95.0) == [15.0, 20.0, 5.0]
    assert market(10, 20, 10).spells(30.0, 50.0) == []
    assert Trace("always", 10.0, (True,)).spells(7.0, 99.0) == [92.0]


def test_a_count_of_two_machines_is_one_that_is_there(tmp_path):
    path = tmp_path / "spot.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 32}, "data": [0, 2, 1]}))
    assert read_trace(path) == Trace("spot", 32, (False, True, True))


# ---------------------------------------------------------------- saves

# Exact in binary, so that both sides round in the same way.
halves = st.integers(1, 40).map(lambda n: n / 2)
stalls = st.sampled_from([1 / 64, 1 / 4, 1.0, 10.0])  # the policy takes 0.05 until it has measured


@settings(deadline=None, max_examples=60)
@given(step=halves, stall=stalls, write=halves, hours=st.sampled_from([0.1, 2, 8]), end=st.data())
def test_saves_are_those_that_the_cadence_decides_on_step_by_step(step, stall, write, hours, end):
    """The reference asks a SaveCadence after every step."""
    ends = end.draw(st.lists(st.integers(1, 6000), min_size=1, max_size=3))
    saves = Saves(step, Costs(0.0, stall, write), hours * 3600)
    for seconds in ends:
        cadence = SaveCadence(None, None, hours * 3600, last_save=0.0)
        now, done, committed, saved, written = 0.0, 0, 0, 0, -math.inf
        while now + step <= seconds:
            now, done = now + step, done + 1
            if cadence.due(done, now) and now >= written:
                cadence.saved(now, stall, write if saved else 0.0)
                committed, saved = saved, done
                now += stall
                written = now + write
        committed = saved if written <= seconds else committed
        assert saves.after(seconds, 10**6) == (committed, done)


# ---------------------------------------------------------------- the run on a market


def test_where_spot_is_always_there_it_is_a_run_on_one_machine():
    always = Trace("always", 10.0, (True,))
    for deadline in (8 * HOUR, math.inf):
        found = course(always, 0.0, deadline)
        assert found == Course(pytest.approx(alone()), Paid(pytest.approx(alone()), 0.0), 0, 0)


def test_without_spot_it_waits_until_the_reserve_and_is_done_with_the_reserve_left():
    deadline = 8 * HOUR
    found = course(market(100 * HOUR, 10), 0.0, deadline)
    assert found.paid == Paid(0.0, pytest.approx(alone()))
    terms = terms_of(run(), Rule(deadline, MARGIN), LIFE)
    kept = Situation(terms, Seen(0.0, run().seconds_left(START, LIFE))).reserve
    assert deadline - found.elapsed == pytest.approx(kept, abs=20.0)


def test_greedy_waits_until_one_loss_is_left_and_then_stays_on_demand():
    found = course(market(5.5 * HOUR, 20 * HOUR), 0.0, 8 * HOUR, greedy=True)
    assert (found.paid.spot, found.returns) == (0.0, 0)
    terms = terms_of(run(), Rule(8 * HOUR, MARGIN), LIFE)
    assert 8 * HOUR - found.elapsed == pytest.approx(terms.enter, abs=20.0)


def test_spot_that_comes_while_on_demand_works_takes_over_and_both_are_paid_for_meanwhile():
    found = course(market(5.5 * HOUR, 20 * HOUR), 0.0, 8 * HOUR)
    assert found.returns == 1
    # Both during the boot; during the handover, both without a step.
    extra = run().costs.boot + 2 * HANDOVER_SECONDS
    assert found.paid.spot + found.paid.on_demand == pytest.approx(alone() + extra, abs=20.0)
    assert found.paid.on_demand > extra


@pytest.mark.parametrize("deadline", [8 * HOUR, math.inf])
def test_a_loss_costs_what_was_not_committed_and_another_boot(deadline):
    found = course(market(10, HOUR, 600, 20 * HOUR), 10.0, deadline)
    assert (found.losses, found.paid.on_demand) == (1, 0.0)
    lost = found.paid.spot - alone() - run().costs.boot
    assert 0 <= lost <= run().lag(LIFE) + 5.0
    assert found.elapsed == pytest.approx(found.paid.spot + 600)


spells = st.lists(st.integers(1, 400).map(lambda ticks: 30.0 * ticks), min_size=2, max_size=40)


@settings(deadline=None, max_examples=60)
@given(spells, st.floats(0, 1), st.floats(1.0, 3.0))
@example([30.0, 120.0], 0.0, 2.0)  # machines that live for half a minute: saves take a part of it
@example([720.0, 5400.0], 0.06, 3.0)  # a save ends just as the machine does, but for rounding
def test_it_is_never_late_and_never_cheaper_than_the_bound(lengths, start, times):
    there = market(*lengths)
    deadline = terms_of(run(), Rule(0.0, MARGIN), LIFE).enter + times * alone()
    begin = start * there.seconds
    found = course(there, begin, deadline)
    assert found.elapsed <= deadline - MARGIN + 10.0  # a step and a half
    bound = least_cost(run(), there.spells(begin, begin + deadline))
    assert found.paid.dollars(*PRICES) >= bound.dollars(*PRICES)


@pytest.mark.parametrize(
    ("spells", "paid"),
    [
        ([], Paid(0.0, 1060.0)),
        ([300.0, 2000.0], Paid(1060.0, 0.0)),  # the longest, no longer than needed
        ([300.0, 860.0], Paid(860.0 + 260.0, 0.0)),
        ([860.0, 119.0], Paid(860.0, 260.0)),  # a boot that costs more than the spell saves
        ([860.0, 121.0], Paid(981.0, 199.0)),
    ],
)
def test_the_bound_uses_the_longest_spells_that_save_anything(spells, paid):
    assert least_cost(TimedRun([Stage(1000, 1.0)], Costs(60.0, 0.5, 15.0), LIFE), spells) == paid


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_spells_is_cheaper_than_the_bound(seed):
    rng, boot, work = random.Random(seed), 60.0, 1000.0
    spells = [rng.uniform(10.0, 600.0) for _ in range(6)]
    best = least_cost(TimedRun([Stage(1000, 1.0)], Costs(boot, 0.5, 15.0), LIFE), spells)
    for count in range(len(spells) + 1):
        for chosen in itertools.combinations(spells, count):
            done = min(sum(max(spell - boot, 0.0) for spell in chosen), work)
            left = work - done
            paid = Paid(done + boot * count, left + boot if left else 0.0)
            assert paid.dollars(*PRICES) >= best.dollars(*PRICES) - 1e-12


def test_where_machines_live_for_hours_nearly_all_time_paid_for_is_kept_work():
    # As in the recorded traces: a machine lives for 7 hours, then there is none for half an hour.
    found = results(pion_small(), Trace("invented", 600.0, (*[True] * 42, *[False] * 3)))
    assert (found["starts"], found["kept"] >= 0.97) == (45, True)
    for row in found["deadlines"].values():
        assert row["late"] == 0.0
        assert row["of_on_demand"] <= row["greedy_of_on_demand"] <= 1.01
        assert row["of_bound"] >= 1.0
