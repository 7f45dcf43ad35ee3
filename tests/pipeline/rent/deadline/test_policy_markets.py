"""Made-up markets: the policy is never late, except by what the margin does not cover."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.rent.deadline.policy import State, Terms, enter
from tests.pipeline.rent.deadline.made_up_market import LOOK, Spells, World

HOURS = 3600.0
# What a decision may miss by, in seconds, as the world is looked at every LOOK seconds.
ROUNDING = 1e-3
lengths = st.floats(math.log(10), math.log(9 * HOURS)).map(math.exp)


@st.composite
def worlds(draw: Any, **fixed: Any) -> World:
    """Draw a market, a run, and a deadline that leaves the slack for one loss, or more."""
    interval, write = draw(st.floats(20, 300)), draw(st.floats(1, 60))
    terms = Terms(
        deadline=0.0,
        margin=fixed.pop("margin", None) or draw(st.sampled_from([0.0, 120.0, 1800.0, 3600.0])),
        boot=draw(st.floats(20, 300)),
        handover=draw(st.floats(0, 600)),
        lag=interval + write,
        notice=LOOK + draw(st.floats(0, 120)),
        life=draw(st.floats(600, 9 * HOURS)),  # it may be wrong
    )
    work = draw(st.floats(0.5, 8)) * HOURS
    extra = draw(st.floats(0, 1)) * work
    terms = replace(terms, deadline=enter(terms) + terms.boot + work + extra)
    market = Spells(draw(lengths), draw(lengths), draw(st.integers(0, 1000)))
    return World(terms, work, market, interval, write, **fixed)


def without_spot(**fixed: Any) -> World:
    """Return a run of four hours without any spot machine, and three hours of slack."""
    terms = Terms(7.1 * HOURS, 1800.0, 60.0, 30.0, 80.0, 60.0, 2 * HOURS)
    never = Spells(1.0, 1e12, 1)
    never._spells = [(-1.0, 0.0)]
    return World(terms, 4 * HOURS, never, 60.0, 20.0, **fixed)


def is_in_time_with_the_margin(world: World) -> None:
    """Assert that spot is entered only with the margin, and that the margin is left at the end."""
    world.run()
    assert all(s >= world.terms.margin - ROUNDING for s in world.slack_at_entries)
    assert world.finished is not None
    assert world.finished <= world.terms.deadline - world.terms.margin + ROUNDING
    assert not world.late


@settings(deadline=None, max_examples=120, phases=[Phase.generate])
@given(worlds())
def test_spot_is_entered_only_with_the_margin_and_the_margin_is_left_at_the_end(
    world: World,
) -> None:
    is_in_time_with_the_margin(world)


@pytest.mark.soak
@settings(deadline=None, max_examples=5_000, phases=[Phase.generate], derandomize=False)
@given(worlds())
def test_no_market_of_many_makes_it_enter_spot_without_the_margin(world: World) -> None:
    is_in_time_with_the_margin(world)


# SkyPilot replaces a lost spot machine right after one on demand was requested for lack of slack.
# Both boot at once. The spot machine took over, although there was no slack for the way back.
@pytest.mark.parametrize(
    "spells",
    [(908.6163788740713, 36.72965096665955, 384), (209.15979981296948, 79.46685706728498, 1)],
)
def test_a_spot_machine_that_boots_next_to_one_on_demand_takes_over_only_with_slack(
    spells: tuple[float, float, int],
) -> None:
    terms = Terms(
        deadline=27936.72303221264,
        margin=120.0,
        boot=125.0,
        handover=105.54393706875473,
        lag=51.06981554713602,
        notice=78.38061322200002,
        life=1110.3817483075609,
    )
    market, interval, write = Spells(*spells), 30.13728680955718, 20.93252873757884
    is_in_time_with_the_margin(World(terms, 22379.765175994024, market, interval, write))


@settings(deadline=None, max_examples=60, phases=[Phase.generate])
@given(worlds(), st.sampled_from([600.0, 1800.0, 3600.0]), st.floats(0, 1), st.booleans())
def test_on_demand_refused_or_lost_once_makes_it_late_by_no_more_than_the_margin_lacks(
    world: World, refused: float, when: float, lost: bool
) -> None:
    begin = when * world.terms.deadline
    world.refused = (begin, begin + refused)
    costs = refused
    if lost:
        world.lost_at = when * world.work
        # The machine's work since its last save, the notice, and the next boot.
        costs += world.terms.lag + world.terms.notice + world.terms.boot
    world.run()
    assert all(s >= world.terms.margin - ROUNDING for s in world.slack_at_entries)
    assert world.lateness <= max(costs - world.terms.margin, 0.0) + ROUNDING


@settings(deadline=None, max_examples=40, phases=[Phase.generate])
@given(worlds(margin=1800.0), st.floats(0, 1))
def test_a_spot_machine_that_falls_silent_is_relieved_in_time(world: World, when: float) -> None:
    world.silent_at = when * world.work
    world.run()
    costs = LOOK + world.terms.lag + world.terms.handover + world.terms.boot
    assert world.finished is not None
    assert world.finished <= world.terms.deadline - world.terms.margin + costs


@settings(deadline=None, max_examples=40, phases=[Phase.generate])
@given(worlds(margin=1800.0), st.floats(0, 1), st.floats(-6 * HOURS, 6 * HOURS))
def test_a_clock_that_is_wrong_for_ten_minutes_costs_no_more_than_these(
    world: World, when: float, by: float
) -> None:
    world.jump = (when * world.terms.deadline, by)
    world.run()
    assert world.lateness == 0.0


@pytest.mark.parametrize("minutes", [10, 30, 60])
def test_on_demand_that_is_sold_out_when_it_is_needed_uses_up_the_slack_and_the_rest_is_said(
    minutes: int,
) -> None:
    armed = without_spot().run().requests[1][0]
    world = without_spot(refused=(0.0, armed + 60.0 * minutes)).run()
    left = world.terms.deadline - armed - world.terms.boot - world.work
    assert left == pytest.approx(46.4 * 60, abs=LOOK)  # the reserve: the margin and more
    expected = max(60.0 * minutes - left, 0.0)
    assert world.lateness == pytest.approx(expected)
    said = (world.states[-1], *world.late[-1:])
    assert said == ((State.LATE, pytest.approx(expected)) if expected else (State.DEMAND,))
