"""When a checkpoint is due, with the clock passed in."""

import dataclasses
import math

import pytest

from pipeline.state.head import Head
from pipeline.training.cadence import MIN_SECONDS, SaveCadence, seconds_between_interruptions
from tests.support.states import someone


def cadence(**changes):
    fields = {"every_steps": None, "every_seconds": None, "preemption_seconds": 7200.0}
    return SaveCadence(**{**fields, "last_save": 0.0, **changes})


@pytest.mark.parametrize(
    ("changes", "interval"),
    [
        ({"stall": 0.2}, math.sqrt(2 * 0.2 * 7200)),
        ({"stall": 0.2, "write_seconds": 300.0}, 300.0),  # as long as a save takes
        ({"stall": 0.0, "preemption_seconds": 60.0}, MIN_SECONDS),  # as long as a restart is worth
        ({"every_seconds": 3.0, "write_seconds": 9.0}, 3.0),
    ],
)
def test_the_interval_is_young_dalys_or_longer_unless_the_job_says_seconds(changes, interval):
    assert cadence(**changes).interval == interval


def test_a_fixed_number_of_steps_alone_ignores_the_clock():
    fixed = cadence(every_steps=10)
    assert fixed.due(20, now=0.0)
    assert not fixed.due(21, now=1e9)


def test_a_save_starts_the_interval_again():
    timed = cadence(every_seconds=60.0)
    assert timed.due(1, now=60.0)
    timed.saved(60.0, stall=0.1, write_seconds=1.0)
    assert not timed.due(2, now=119.0)
    assert timed.due(3, now=120.0)


def test_a_store_that_bears_few_commits_sets_a_floor_whatever_the_job_asks_for():
    hub = cadence(every_steps=1, floor_seconds=120.0)
    assert not hub.due(step=1, now=119.0)
    assert hub.due(step=2, now=120.0)
    assert cadence(every_seconds=3.0, floor_seconds=120.0).interval == 120.0


def test_it_is_too_soon_for_any_save_until_the_store_bears_one():
    hub = cadence(floor_seconds=120.0)
    assert hub.too_soon(now=119.0)
    assert not hub.too_soon(now=120.0)
    assert not cadence().too_soon(now=0.0)


HOUR = 3600.0


def lived(*lives, waited=0.0, claims=1):
    """Return the HEAD of a run whose processes lived so many seconds, each after a wait.

    The present process, which has just claimed, comes after them. Each process claims `claims`
    times.
    """
    head, now = Head(), 1e9
    for life in (*lives, 0.0):
        me = someone(started_at=now)
        for _ in range(claims):
            head = head.claimed(me, now)
        now += life
        head = dataclasses.replace(head, spent=head.spent.plus(life, None, now))
        now += waited
    return head


@pytest.mark.parametrize(
    ("head", "seconds"),
    [
        (Head(), 7200.0),  # assumed
        (lived(600.0, 600.0), 7200.0),
        (lived(600.0, 600.0, claims=3), 7200.0),  # several claims of a process are one life
        (lived(600.0, 600.0, 1200.0, claims=2), 800.0),
        (lived(600.0, 600.0, 1200.0), 800.0),
        (lived(600.0, 600.0, 1200.0, waited=3 * HOUR), 800.0),  # waiting is not life
        (lived(1.0, 1.0, 1.0), 60.0),  # else a run would save all the time
    ],
)
def test_how_long_processes_live_is_assumed_until_a_few_have_lived(head, seconds):
    assert seconds_between_interruptions(head, 7200.0) == pytest.approx(seconds)


def test_the_life_of_the_present_process_does_not_count():
    head = lived(600.0, 600.0, 1200.0)
    grown = head.spent.plus(9 * HOUR, None, head.spent.until + 9 * HOUR)
    aged = dataclasses.replace(head, spent=grown)
    assert seconds_between_interruptions(aged, 7200.0) == pytest.approx(800.0)


def test_processes_whose_claims_head_has_forgotten_lived_too():
    head = lived(*[900.0] * 99, claims=2)
    assert head.epoch > 3 * len(head.claims)
    assert seconds_between_interruptions(head, 7200.0) == pytest.approx(900.0)
