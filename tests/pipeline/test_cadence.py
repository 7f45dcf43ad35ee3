"""When a checkpoint is due, with the clock passed in."""

from __future__ import annotations

import math

from pipeline.cadence import MIN_SECONDS, SaveCadence


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


def test_a_save_starts_the_interval_anew() -> None:
    timed = cadence(every_seconds=60.0)
    assert timed.due(1, now=60.0)
    timed.saved(60.0, stall=0.1, write_seconds=1.0)
    assert not timed.due(2, now=119.0)
    assert timed.due(3, now=120.0)
