"""`pion deadline`: show the deadline of a run, change it, or switch it off."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import duration, moment, printable, show
from pipeline.job import Deadline
from pipeline.job.bounds import HOURS
from pipeline.job.deadline import parse_moment
from pipeline.state.author import Author
from pipeline.state.deadline import RunDeadline, change_deadline, read_deadline
from pipeline.state.find_run import no_such_run, open_run
from pipeline.state.records import Head
from pipeline.state.rental_note import read_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished
from pipeline.state.watcher_beat import WatcherBeat, is_silent, read_beat

COMMAND = "pion deadline"
NONE = "none. Set one: pion deadline {run} --hours N, or --at 2026-12-01T18:00Z"


def show_deadline(
    run: str, *, hours: str | None = None, at: str | None = None, off: bool = False
) -> int:
    """Print the deadline of `run`, changed first if anything is given; return 0.

    `hours` count from now; `at` is a moment with a zone. Raises BadInput if there is no such run,
    for a deadline in another form or in the past, and for a record that can't be read, unless it is
    damaged and replaced.
    """
    state = open_run(run)
    head, now = state.read(), state.clock.now()
    change = hours is not None or at is not None or off
    if head is None and read_rental_note(state)[1] is None:
        # A launch writes both notes before a machine claims the run.
        raise BadInput(no_such_run(state))
    if change:
        wanted = None if off else _moment(hours, at, now)
        change_deadline(state, lambda old: _changed(old, wanted, now), replace_damaged=True)
    else:
        read_deadline(state)  # raises an error, which `deadline_lines` only tells
    for line in deadline_lines(state, head, now) or [f"deadline: {NONE.format(run=state.url)}"]:
        show(line)
    return 0


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
        default = Deadline.model_fields["margin"].default
        return RunDeadline(at, default, now, me, COMMAND)
    return dataclasses.replace(present, at=at, set_at=now, by=me, how=COMMAND)


# ---------------------------------------------------------------- in words


def deadline_lines(state: RunState, head: Head | None, now: float) -> list[str]:
    """Return what there is to say about a run's deadline; nothing if it never had one.

    Raises StoreError.
    """
    try:
        record = read_deadline(state)
    except BadInput as error:
        return [f"the deadline can't be read: {error}"]
    if record is None:
        return []
    words = f"deadline: {record.describe(now)}"
    if record.at is None:
        return [f"{words}; {record.describe_author()}"]
    finished_at = finish_time(state, head)
    if finished_at is not None:
        return [f"deadline: {moment(record.at)}, {record.describe_end(finished_at)}"]
    words += f", margin {duration(record.margin)}; {record.describe_author()}"
    return [words, *_watcher_lines(state, read_beat(state), now)]


def deadline_json(state: RunState, head: Head, now: float) -> dict[str, Any] | None:
    """Return a run's deadline as plain JSON; None if it never had one. Raises StoreError."""
    try:
        record = read_deadline(state)
    except BadInput as error:
        return {"error": str(error)}
    if record is None:
        return None
    beat, finished_at = read_beat(state), finish_time(state, head)
    silent = is_silent(state, beat, now)
    return {
        **dataclasses.asdict(record),
        "met": None if None in (record.at, finished_at) else finished_at <= record.at,  # type: ignore[operator]
        "watcher": beat and dataclasses.asdict(beat),
        "watched": not silent,
        "at_risk_from": beat.risk_at if beat is not None and silent else None,
    }


def finish_time(state: RunState, head: Head | None) -> float | None:
    """Return when a run finished its last stage, in Unix seconds; None if it has not."""
    if head is None or not is_finished(state, head):
        return None
    return max((stage.at for stage in head.stages.values()), default=None)


def _watcher_lines(state: RunState, beat: WatcherBeat | None, now: float) -> list[str]:
    """Say who watches the run, and what follows for the deadline if nobody does."""
    start = f"pion watch {state.url}"
    if beat is None:
        return [
            "no watcher that knows deadlines has been seen. On the machine that rented, start one: "
            f"{start}. If one runs there under an older pion, update pion and start it again"
        ]
    who = printable(f"{beat.by.describe()} (pion {beat.pion})")
    if beat.too_old():
        return [
            f"the watcher, {who}, is too old to know this deadline. Update pion there, and start "
            f"it again: {start}"
        ]
    age = duration(now - beat.at)
    if not is_silent(state, beat, now):
        return [f"watched by {who}, last sign of life {age} ago"]
    line = f"nobody has watched for {age}; the last was {who}. Start it again: {start}"
    if beat.risk_at is None:
        return [line]
    return [line, f"at risk from {moment(beat.risk_at)}, unless somebody watches"]
