"""`pion deadline`: show the deadline of a run, change it, or switch it off."""

from __future__ import annotations

import dataclasses
import math

from pion.errors import BadInput
from pipeline.console.formats import duration, moment, show
from pipeline.job import Deadline
from pipeline.job.runtime_sections import parse_moment
from pipeline.job.section import HOURS
from pipeline.state.find_run import no_such_run, open_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline, read_deadline
from pipeline.state.notes.rental_note import read_rental_note
from pipeline.state.owner import Author
from pipeline.state.status.run_status import deadline_of, is_finished
from pipeline.state.stores.clock import StoreClock

COMMAND = "pion deadline"


def show_deadline(
    run: str, *, hours: str | None = None, at: str | None = None, off: bool = False
) -> None:
    """Print the deadline of `run`, changed first if anything is given.

    `hours` count from now; `at` is a moment with a zone. Raises BadInput if there is no such run,
    for a deadline in another form or in the past, and for a record that can't be read, unless it is
    damaged and replaced.
    """
    state = open_run(run)
    head, now = state.read(), StoreClock(state.clock, state.store).now()
    change = hours is not None or at is not None or off
    if change and not off and head is not None and is_finished(state, head):
        raise BadInput(
            f"run {state.name} is finished, so it needs no deadline. Nothing was changed."
        )
    if head is None and read_rental_note(state)[1] is None:
        # A launch writes both notes before a machine claims the run.
        raise BadInput(no_such_run(state))
    if change:
        wanted = None if off else _moment(hours, at, now)
        change_deadline(state, lambda old: _changed(old, wanted, now), replace_damaged=True)
    else:
        read_deadline(state)  # raises an error, which `deadline_of` only tells
    none = f"none. Set one: pion deadline {state.url} --hours N, or --at 2026-12-01T18:00Z"
    for line in deadline_of(state, head, now)[1] or [f"deadline: {none}"]:
        show(line)


def _moment(hours: str | None, at: str | None, now: float) -> float:
    """Return the deadline that is asked for, in Unix seconds. Raises BadInput."""
    if hours is not None:
        return now + 3600 * _hours(hours)
    assert at is not None
    try:
        wanted = parse_moment(at)
    except ValueError as error:
        raise BadInput(f"--at {at!r:.200}: {error}. Nothing was changed.") from None
    if wanted <= now:
        raise BadInput(
            f"--at {at}: this moment was {duration(now - wanted)} ago (it is {moment(now)}). "
            "Nothing was changed."
        )
    return wanted


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= HOURS:
        raise BadInput(
            f"--hours {text!r:.200}: should be a number above 0, and at most {HOURS:,}. Nothing "
            "was changed."
        )
    return hours


def _changed(present: RunDeadline | None, at: float | None, now: float) -> RunDeadline:
    me = Author.me()
    if present is None:
        return RunDeadline(at, Deadline.model_fields["margin"].default, now, me, COMMAND)
    return dataclasses.replace(present, at=at, set_at=now, by=me, how=COMMAND)
