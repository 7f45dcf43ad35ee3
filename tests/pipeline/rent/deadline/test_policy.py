"""What to rent for a deadline: the amounts of slack, and every state with every event."""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.rent.deadline.policy import (
    Market,
    Rental,
    Seen,
    Situation,
    State,
    Terms,
    decide,
)
from tests.pipeline.rent.deadline.made_up_market import LOOK, Spells, World

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
NOW = 1_800_000_000.0
WORK = 36_000.0
TERMS = Terms(
    deadline=NOW + 50_000.0,
    margin=1800.0,
    boot=60.0,
    handover=30.0,
    lag=80.0,
    notice=70.0,
    life=9000.0,
)
# stay 1950, enter 2010, come_back 1980, a loss 240, 4 losses ahead: reserve 2010 + 240 × (4 + 2).
STAY, ENTER, COME_BACK, RESERVE = 1950.0, 2010.0, 1980.0, 3450.0

STANDS = Rental(NOW - 100.0)
BOOTS = Rental(NOW - 20.0, machine=True)
WORKS = Rental(NOW - 5000.0, machine=True)
RELIEVED = Rental(NOW - 5000.0, machine=True, relieved=True)


def seen(slack_left, owner=None, **facts):
    """Return what is seen when that slack is left. The work left is always the same."""
    return Seen(
        now=TERMS.deadline - TERMS.boot - WORK - slack_left,
        work_left=WORK,
        owner=owner,
        **facts,
    )


def moved(rental, facts):
    """Return the rental as long ago as it was at NOW."""
    return replace(rental, since=rental.since - NOW + facts.now)


# ---------------------------------------------------------------- amounts


def test_the_reserve_covers_the_losses_to_expect_and_their_deviation():
    loss = 60 + 30 + 80 + 70
    assert TERMS.loss == loss
    assert Situation(TERMS, Seen(NOW, WORK)).reserve == ENTER + loss * (4 + 2) == RESERVE
    assert Situation(TERMS, Seen(NOW, 9000.0)).reserve == ENTER + loss * (1 + 1)
    # Less time than work is left.
    assert Situation(TERMS, Seen(TERMS.deadline - 9000.0, WORK)).reserve == ENTER + loss * (1 + 1)
    assert Situation(TERMS, Seen(TERMS.deadline + 9000.0, WORK)).reserve == ENTER
    assert Situation(replace(TERMS, life=math.inf), Seen(NOW, WORK)).reserve == ENTER


def test_lives_shorter_than_a_loss_leave_nothing_to_wait_with():
    short = replace(TERMS, life=1.0)
    assert Situation(short, Seen(NOW, WORK)).reserve > ENTER + WORK
    assert math.isfinite(Situation(short, Seen(NOW, WORK)).reserve)


def test_lateness_counts_a_boot_unless_a_machine_on_demand_is_there():
    at = Seen(TERMS.deadline - WORK + 100.0, WORK)
    assert Situation(TERMS, at).late == 160.0
    assert Situation(TERMS, replace(at, owner=ON_DEMAND)).late == 100.0
    assert (
        Situation(TERMS, replace(at, on_demand=Rental(at.now - 20.0, machine=True))).late == 140.0
    )
    assert Situation(TERMS, replace(at, on_demand=Rental(at.now - 20.0))).late == 160.0
    assert Situation(TERMS, Seen(NOW, WORK)).late == 0.0


# ---------------------------------------------------------------- every state and event


@dataclass(frozen=True)
class Case:
    """What is seen, and the action that follows: state, markets to cancel, what to request."""

    name: str
    slack: float
    owner: Market | None
    spot: Rental | None
    on_demand: Rental | None
    state: State
    cancel: tuple[Market, ...] = ()
    request: Market | None = None


CASES = [
    Case("at the start, there is time: spot", 9000, None, None, None, State.WAITING, (), SPOT),
    Case("at the start, there is none: on demand", RESERVE, None, None, None, State.ARMING, (),
         ON_DEMAND),
    # SPOT, or WAITING after its loss
    Case("spot works with slack for its loss and no more", STAY, SPOT, WORKS, None, State.SPOT),
    Case("spot is silent, or slow", STAY - 1, SPOT, WORKS, None, State.ARMING, (), ON_DEMAND),
    Case("spot is silent, and relief is under way", STAY - 1, SPOT, WORKS, BOOTS, State.ARMING),
    Case("spot is a bit faster again, and relief is under way", STAY + 79, SPOT, WORKS, BOOTS,
         State.ARMING),
    Case("spot was only paused", STAY + 80, SPOT, WORKS, STANDS, State.SPOT, (ON_DEMAND,)),
    Case("spot was only paused, and its relief boots", STAY + 80, SPOT, WORKS, BOOTS, State.SPOT),
    Case("spot is waited for, there is time", RESERVE + 1, None, STANDS, None, State.WAITING),
    Case("spot is lost with its job, there is time", RESERVE + 1, None, None, None,
         State.WAITING, (), SPOT),
    Case("spot is waited for, there is no time", RESERVE, None, STANDS, None, State.ARMING,
         (SPOT,), ON_DEMAND),
    Case("spot is lost while its relief boots", 1700, None, STANDS, BOOTS, State.ARMING, (SPOT,)),
    Case("spot works, too late", -1, SPOT, WORKS, None, State.LATE, (), ON_DEMAND),
    # WAITING
    Case("a machine boots", ENTER - 20, None, BOOTS, None, State.WAITING),
    Case("a machine came too late", ENTER - 21, None, BOOTS, None, State.ARMING, (SPOT,),
         ON_DEMAND),
    Case("a machine boots for longer than thought", ENTER - 60, None, WORKS, None, State.WAITING),
    Case("a machine boots for far too long", ENTER - 61, None, WORKS, None, State.ARMING, (SPOT,),
         ON_DEMAND),
    Case("the machine claims", ENTER - 60, SPOT, WORKS, None, State.SPOT),
    # ARMING
    Case("on demand is asked for", 2000, None, None, STANDS, State.ARMING),
    Case("on demand boots", 2000, None, None, BOOTS, State.ARMING),
    Case("on demand claims", 2000, ON_DEMAND, None, WORKS, State.DEMAND),
    Case("on demand relieves spot", COME_BACK + 80, ON_DEMAND, RELIEVED, WORKS, State.DEMAND,
         (SPOT,), SPOT),
    Case("on demand claims, and spot was never cancelled", 2000, ON_DEMAND, STANDS, WORKS,
         State.DEMAND),
    Case("the deadline was moved, nothing came yet", 9000, None, None, STANDS, State.WAITING,
         (ON_DEMAND,), SPOT),
    Case("the deadline was moved, a machine boots", 9000, None, None, BOOTS, State.ARMING),
    Case("on demand is asked for, too late", -1, None, None, STANDS, State.LATE),
    # DEMAND
    Case("on demand works, there is slack for the way back", COME_BACK + 80, ON_DEMAND, None, WORKS,
         State.DEMAND, (), SPOT),
    Case("on demand works, there is nearly slack", COME_BACK + 79, ON_DEMAND, None, WORKS,
         State.DEMAND),
    Case("spot is asked for, there is slack", COME_BACK, ON_DEMAND, STANDS, WORKS, State.DEMAND),
    Case("spot is asked for, there is no slack", COME_BACK - 1, ON_DEMAND, STANDS, WORKS,
         State.DEMAND, (SPOT,)),
    Case("spot boots, there is no slack", COME_BACK - 1, ON_DEMAND, BOOTS, WORKS, State.DEMAND,
         (SPOT,)),
    Case("spot claims: on demand ends", STAY, SPOT, WORKS, RELIEVED, State.SPOT,
         (ON_DEMAND,)),
    Case("on demand is lost, there is no time", RESERVE, None, STANDS, STANDS, State.ARMING,
         (SPOT,)),
    Case("on demand is lost, there is time", RESERVE + 1, None, STANDS, STANDS, State.WAITING,
         (ON_DEMAND,)),
    # LATE
    Case("on demand works, just in time", -60, ON_DEMAND, None, WORKS, State.DEMAND),
    Case("on demand works, too late", -61, ON_DEMAND, None, WORKS, State.LATE),
    Case("on demand works, too late, spot is asked for", -61, ON_DEMAND, STANDS, WORKS, State.LATE,
         (SPOT,)),
    Case("nothing is rented, too late", -61, None, None, None, State.LATE, (), ON_DEMAND),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_event_in_every_state(case):
    facts = seen(case.slack, case.owner)
    spot = None if case.spot is None else moved(case.spot, facts)
    on_demand = None if case.on_demand is None else moved(case.on_demand, facts)
    facts = replace(facts, spot=spot, on_demand=on_demand)
    action = decide(TERMS, facts)
    assert (action.state, action.cancel, action.request) == (case.state, case.cancel, case.request)
    assert (action.state is State.LATE) == (action.situation.late > 0)
    after = decide(TERMS, carried_out(facts, action))
    assert (after.cancel, after.request) == ((), None), "the next look has nothing to add"


def carried_out(facts, action):
    """Return what a watcher that has just carried out `action`, or was started then, would see."""
    rentals = {SPOT: facts.spot, ON_DEMAND: facts.on_demand}
    for market in action.cancel:
        rentals[market] = None
    if action.request is not None:
        rentals[action.request] = Rental(facts.now)
    return replace(facts, spot=rentals[SPOT], on_demand=rentals[ON_DEMAND])


@pytest.mark.parametrize("owner", [None, SPOT, ON_DEMAND])
@pytest.mark.parametrize("left", [0.0, -1.0])
def test_a_finished_run_needs_no_machine_that_has_not_come(owner, left):
    both = Seen(NOW, left, owner, STANDS, STANDS)
    action = decide(TERMS, both)
    assert (action.state, action.cancel) == (State.DONE, (SPOT, ON_DEMAND))
    assert action.request is None
    # A machine that is up sees for itself that nothing is left.
    assert decide(TERMS, replace(both, spot=WORKS, on_demand=BOOTS)).cancel == ()


@given(st.floats(0, 1e9), st.floats(1, 1e7), st.sampled_from([None, False, True]), st.booleans())
def test_with_all_the_time_it_wants_spot_and_nothing_else(now, work_left, machine, owns):
    rental = None if machine is None else Rental(now / 2, machine)
    owner = SPOT if machine and owns else None
    action = decide(replace(TERMS, deadline=math.inf), Seen(now, work_left, owner, rental))
    assert (action.cancel, action.request) == ((), SPOT if rental is None else None)


# ---------------------------------------------------------------- what is not seen


def test_while_the_store_is_down_nothing_changes_if_a_machine_may_be_at_work():
    facts = seen(100.0, SPOT, spot=WORKS, stale=True)
    action = decide(TERMS, facts)
    assert action.state is State.ARMING
    assert (action.cancel, action.request) == ((), None)
    assert decide(TERMS, replace(facts, stale=False)).request == ON_DEMAND


def test_while_the_store_is_down_and_no_machine_is_there_on_demand_is_rented_in_time():
    action = decide(TERMS, seen(RESERVE, spot=STANDS, stale=True))
    assert (action.cancel, action.request) == ((SPOT,), ON_DEMAND)


def test_the_time_until_which_spot_may_be_waited_for_is_when_it_decides_otherwise():
    facts = seen(9000.0, spot=STANDS)
    until = decide(TERMS, facts).situation.spot_until
    assert until == facts.now + 9000.0 - RESERVE
    assert decide(TERMS, replace(facts, now=until - 1.0)).state is State.WAITING
    assert decide(TERMS, replace(facts, now=until + 0.001)).state is State.ARMING


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0, -1e9, 1e9])
def test_a_clock_that_jumps_while_a_machine_boots_counts_no_more_than_the_boot(jump):
    facts = seen(ENTER - 61, spot=Rental(NOW + jump, machine=True))
    assert decide(TERMS, facts).state is State.ARMING
    assert decide(TERMS, replace(facts, now=facts.now - 61)).state is State.WAITING


# ---------------------------------------------------------------- made-up markets: the policy is n

HOURS = 3600.0
# What a decision may miss by, in seconds, as the world is looked at every LOOK seconds.
ROUNDING = 1e-3
lengths = st.floats(math.log(10), math.log(9 * HOURS)).map(math.exp)


@st.composite
def worlds(draw, **fixed):
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
    terms = replace(terms, deadline=terms.enter + terms.boot + work + extra)
    market = Spells(draw(lengths), draw(lengths), draw(st.integers(0, 1000)))
    return World(terms, work, market, interval, write, **fixed)


def without_spot(**fixed):
    """Return a run of four hours without any spot machine, and three hours of slack."""
    terms = Terms(7.1 * HOURS, 1800.0, 60.0, 30.0, 80.0, 60.0, 2 * HOURS)
    never = Spells(1.0, 1e12, 1)
    never._spells = [(-1.0, 0.0)]
    return World(terms, 4 * HOURS, never, 60.0, 20.0, **fixed)


def is_in_time_with_the_margin(world):
    """Assert that spot is entered only with the margin, and that the margin is left at the end."""
    world.run()
    assert all(s >= world.terms.margin - ROUNDING for s in world.slack_at_entries)
    assert world.finished <= world.terms.deadline - world.terms.margin + ROUNDING
    assert not world.late


@settings(deadline=None, max_examples=120, phases=[Phase.generate])
@given(worlds())
def test_spot_is_entered_only_with_the_margin_and_the_margin_is_left_at_the_end(world):
    is_in_time_with_the_margin(world)


@pytest.mark.soak
@settings(deadline=None, max_examples=5_000, phases=[Phase.generate], derandomize=False)
@given(worlds())
def test_no_market_of_many_makes_it_enter_spot_without_the_margin(world):
    is_in_time_with_the_margin(world)


# SkyPilot replaces a lost spot machine right after one on demand was requested for lack of slack.
# Both boot at once. The spot machine took over, although there was no slack for the way back.
@pytest.mark.parametrize(
    "spells",
    [(908.6163788740713, 36.72965096665955, 384), (209.15979981296948, 79.46685706728498, 1)],
)
def test_a_spot_machine_that_boots_next_to_one_on_demand_takes_over_only_with_slack(spells):
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
    world, refused, when, lost
):
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
def test_a_spot_machine_that_falls_silent_is_relieved_in_time(world, when):
    world.silent_at = when * world.work
    world.run()
    costs = LOOK + world.terms.lag + world.terms.handover + world.terms.boot
    assert world.finished <= world.terms.deadline - world.terms.margin + costs


@settings(deadline=None, max_examples=40, phases=[Phase.generate])
@given(worlds(margin=1800.0), st.floats(0, 1), st.floats(-6 * HOURS, 6 * HOURS))
def test_a_clock_that_is_wrong_for_ten_minutes_costs_no_more_than_these(world, when, by):
    world.jump = (when * world.terms.deadline, by)
    world.run()
    assert world.lateness == 0.0


@pytest.mark.parametrize("minutes", [10, 30, 60])
def test_on_demand_that_is_sold_out_when_it_is_needed_uses_up_the_slack_and_the_rest_is_said(
    minutes,
):
    armed = without_spot().run().requests[1][0]
    world = without_spot(refused=(0.0, armed + 60.0 * minutes)).run()
    left = world.terms.deadline - armed - world.terms.boot - world.work
    assert left == pytest.approx(46.4 * 60, abs=LOOK)  # the reserve: the margin and more
    expected = max(60.0 * minutes - left, 0.0)
    assert world.lateness == pytest.approx(expected)
    said = (world.states[-1], *world.late[-1:])
    assert said == ((State.LATE, pytest.approx(expected)) if expected else (State.DEMAND,))
