"""When a checkpoint is due, with the clock passed in."""

from __future__ import annotations

import math

from pipeline.state.records import ClaimRecord
from pipeline.training.cadence import MIN_SECONDS, SaveCadence, seconds_between_interruptions
from tests.support.states import someone


def cadence(**changes: object) -> SaveCadence:
    fields = {"every_steps": None, "every_seconds": None, "preemption_seconds": 7200.0}
    return SaveCadence(**{**fields, "last_save": 0.0, **changes})  # type: ignore[arg-type]


def test_the_interval_is_young_dalys() -> None:
    assert cadence(stall=0.2).interval == math.sqrt(2 * 0.2 * 7200)


def test_it_is_never_shorter_than_a_save_takes() -> None:
    assert cadence(stall=0.2, write_seconds=300.0).interval == 300.0


def test_it_is_never_shorter_than_restarting_is_worth() -> None:
    assert cadence(stall=0.0, preemption_seconds=60.0).interval == MIN_SECONDS


def test_a_fixed_number_of_seconds_wins() -> None:
    assert cadence(every_seconds=3.0, write_seconds=9.0).interval == 3.0


def test_a_fixed_number_of_steps_alone_ignores_the_clock() -> None:
    fixed = cadence(every_steps=10)
    assert fixed.due(20, now=0.0)
    assert not fixed.due(21, now=1e9)


def test_a_save_starts_the_interval_again() -> None:
    timed = cadence(every_seconds=60.0)
    assert timed.due(1, now=60.0)
    timed.saved(60.0, stall=0.1, write_seconds=1.0)
    assert not timed.due(2, now=119.0)
    assert timed.due(3, now=120.0)


def test_a_store_that_bears_few_commits_sets_a_floor_whatever_the_job_asks_for() -> None:
    hub = cadence(every_steps=1, floor_seconds=120.0)
    assert not hub.due(step=1, now=119.0)
    assert hub.due(step=2, now=120.0)
    assert cadence(every_seconds=3.0, floor_seconds=120.0).interval == 120.0


def test_it_is_too_soon_for_any_save_until_the_store_bears_one() -> None:
    hub = cadence(floor_seconds=120.0)
    assert hub.too_soon(now=119.0)
    assert not hub.too_soon(now=120.0)
    assert not cadence().too_soon(now=0.0)


def claims(starts: list[float]) -> list[ClaimRecord]:
    return [ClaimRecord(i, at, someone(session=str(i))) for i, at in enumerate(starts)][::-1]


def test_the_time_between_interruptions_is_assumed_until_a_few_were_seen() -> None:
    assert seconds_between_interruptions(claims([0.0, 600.0, 1200.0]), 7200.0) == 7200.0
    assert seconds_between_interruptions(claims([0.0, 600.0, 1200.0, 2400.0]), 7200.0) == 800.0


def test_several_claims_of_one_process_are_one_start() -> None:
    again = [ClaimRecord(9, 50.0, someone(session="0")), *claims([0.0, 600.0, 1200.0])]
    assert seconds_between_interruptions(again, 7200.0) == 7200.0
