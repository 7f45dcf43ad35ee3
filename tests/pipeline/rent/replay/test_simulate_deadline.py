"""A run with a deadline, replayed on a market through the policy of a rented run."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.job import Checkpoint
from pipeline.rent.deadline import policy
from pipeline.rent.deadline.policy import (
    HANDOVER_SECONDS,
    Rental,
    Seen,
    decide,
    enter,
    reserve,
)
from pipeline.rent.replay.deadline import least_cost
from pipeline.rent.replay.simulate import (
    Course,
    Paid,
    Rule,
    replay_deadline,
    replay_on_demand,
    replay_on_spot,
    terms_of,
)
from pipeline.rent.replay.timed_training import START, Overheads, Place, StageWork, TimedRun
from pipeline.rent.replay.traces import Trace
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace

NOWHERE = Workspace(FileStore("/nowhere"), "run")
WORK = [StageWork("pretrain", 2000, 5.0), StageWork("sft", 500, 2.0)]
COSTS = Overheads(boot=50.0, restore=10.0, stall=0.5, write=15.0)
POLICY = Checkpoint()
HOUR, MARGIN = 3600.0, 600.0
LIFE = HOUR * POLICY.preemption_hours


@cache
def run() -> TimedRun:
    return TimedRun(WORK, COSTS, POLICY, NOWHERE)


def course(market: Trace, start: float, deadline: float, *, greedy: bool = False) -> Course:
    return replay_deadline(run(), market, start, Rule(deadline, MARGIN, greedy))


def market(*spells: float) -> Trace:
    """Make a trace: seconds without a machine, then seconds with one, then without …"""
    ticks = [place % 2 == 1 for place, length in enumerate(spells) for _ in range(int(length / 10))]
    return Trace("invented", 10.0, tuple(ticks))


@cache
def alone() -> float:
    """Return the seconds that the run takes on one machine."""
    return replay_on_demand(run()).elapsed


def test_where_spot_is_always_there_it_is_a_run_on_one_machine() -> None:
    always = Trace("always", 10.0, (True,))
    assert course(always, 0.0, 8 * HOUR) == Course(alone(), Paid(alone(), 0.0), 0, 0)


def test_without_spot_it_waits_until_the_reserve_and_is_done_with_the_reserve_left() -> None:
    deadline = 8 * HOUR
    found = course(market(100 * HOUR, 10), 0.0, deadline)
    assert found.paid == Paid(0.0, pytest.approx(alone()))
    terms = terms_of(run(), Rule(deadline, MARGIN), LIFE)
    kept = reserve(terms, Seen(0.0, run().seconds_left(START, LIFE)))
    assert deadline - found.elapsed == pytest.approx(kept, abs=20.0)


def test_greedy_waits_until_one_loss_is_left_and_then_stays_on_demand() -> None:
    there_again = market(5.5 * HOUR, 20 * HOUR)
    found = course(there_again, 0.0, 8 * HOUR, greedy=True)
    assert (found.paid.spot, found.returns) == (0.0, 0)
    terms = terms_of(run(), Rule(8 * HOUR, MARGIN), LIFE)
    assert 8 * HOUR - found.elapsed == pytest.approx(enter(terms), abs=20.0)


def test_spot_that_comes_while_on_demand_works_takes_over_and_both_are_paid_for_meanwhile() -> None:
    found = course(market(5.5 * HOUR, 20 * HOUR), 0.0, 8 * HOUR)
    assert found.returns == 1
    # Both during the boot; during the handover, both without a step.
    extra = run().boot + 2 * HANDOVER_SECONDS
    paid = found.paid.spot + found.paid.on_demand
    assert paid == pytest.approx(alone() + extra, abs=20.0)
    assert found.paid.on_demand > extra


def test_a_loss_costs_what_was_not_committed_and_another_boot() -> None:
    found = course(market(10, HOUR, 600, 20 * HOUR), 10.0, 8 * HOUR)
    assert (found.losses, found.paid.on_demand) == (1, 0.0)
    lost = found.paid.spot - alone() - run().boot
    assert 0 <= lost <= run().lag(POLICY.preemption_hours * HOUR) + 5.0


spells = st.lists(st.integers(1, 400).map(lambda ticks: 30.0 * ticks), min_size=2, max_size=40)


@given(st.floats(0, 1e9), st.floats(1, 1e7), st.sampled_from([None, False, True]), st.booleans())
def test_without_a_deadline_the_policy_wants_spot_and_nothing_else(
    now: float, work_left: float, machine: bool | None, owns: bool
) -> None:
    """So a replay without a deadline does not ask it."""
    rental = None if machine is None else Rental(now / 2, machine)
    owner = policy.Market.SPOT if machine and owns else None
    action = decide(
        terms_of(run(), Rule(math.inf, MARGIN), LIFE), Seen(now, work_left, owner, rental)
    )
    assert action.request == (policy.Market.SPOT if rental is None else None)
    assert action.cancel == ()


@settings(deadline=None, max_examples=60)
@given(spells, st.floats(0, 1))
@example([720.0, 5400.0], 0.06)  # a save ends just as the machine does, but for rounding
def test_a_deadline_that_is_far_away_changes_nothing(lengths: list[float], start: float) -> None:
    there = market(*lengths)
    begin = start * there.seconds
    often = TimedRun(WORK, COSTS, Checkpoint(every_steps=20), NOWHERE)
    alone_on_spot = replay_on_spot(often, there, begin)
    if alone_on_spot.stopped is None:
        found = replay_deadline(often, there, begin, Rule(1e9, MARGIN))
        assert found.elapsed == pytest.approx(alone_on_spot.elapsed)
        assert found.paid == Paid(pytest.approx(alone_on_spot.paid), 0.0)
        assert found.losses == alone_on_spot.preemptions


@settings(deadline=None, max_examples=60)
@given(spells, st.floats(0, 1), st.floats(1.0, 3.0))
@example([30.0, 120.0], 0.0, 2.0)  # machines that live for half a minute: saves take a part of it
def test_it_is_never_late_and_never_cheaper_than_the_bound(
    lengths: list[float], start: float, times: float
) -> None:
    there = market(*lengths)
    terms = terms_of(run(), Rule(0.0, MARGIN), LIFE)
    deadline = enter(terms) + times * alone()
    begin = start * there.seconds
    found = course(there, begin, deadline)
    assert found.elapsed <= deadline - MARGIN + 10.0  # a step and a half
    prices = (0.2, 0.4)
    every = there.spells(begin, begin + deadline)
    bound = least_cost(run().work_seconds, run().boot, prices, every)
    assert found.paid.dollars(*prices) >= bound.dollars(*prices)


def test_the_last_seconds_left_are_those_that_training_takes() -> None:
    everything = run().stint(START, 1e9, 7200.0)
    assert everything.finish == pytest.approx(run().seconds_left(START, LIFE))
    assert run().seconds_left(Place(2, 0), LIFE) == 0.0


def test_a_machine_that_is_relieved_keeps_more_than_one_that_is_lost() -> None:
    stint = run().stint(START, 1000.0, 7200.0)
    assert stint.finish == math.inf
    assert stint.committed.step < stint.reached.step <= 200
