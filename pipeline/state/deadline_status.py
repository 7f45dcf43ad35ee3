"""What a run's store knows about its deadline: will it be met, was it, and does anybody watch?"""

from __future__ import annotations

import dataclasses
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import duration, moment, printable
from pipeline.state.deadline import read_deadline
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished
from pipeline.state.watcher_beat import WatcherBeat, nobody_watches, read_beat

# What a run does, by the state that its watcher saw.
_STATES = {
    "spot": "on a spot machine",
    "waiting": "waiting for a spot machine",
    "arming": "requesting a machine on demand",
    "on demand": "on a machine on demand",
    "late": "too late for the deadline, so on demand to the end",
    "done": "nothing is left to do",
}
_LONGEST_STATE = 40


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
    beat = read_beat(state)
    return [words, *_saw_lines(beat, now), *_watcher_lines(state, beat, now)]


def deadline_json(state: RunState, head: Head, now: float) -> dict[str, Any] | None:
    """Return a run's deadline as plain JSON; None if it never had one. Raises StoreError."""
    try:
        record = read_deadline(state)
    except BadInput as error:
        return {"error": str(error)}
    if record is None:
        return None
    beat, finished_at = read_beat(state), finish_time(state, head)
    silent = nobody_watches(state, beat, now)
    over = record.at is None or finished_at is not None
    known = record.at is not None and finished_at is not None
    return {
        **dataclasses.asdict(record),
        "finished_at": finished_at,
        "met": (finished_at or 0.0) <= (record.at or 0.0) if known else None,
        "watcher": beat and dataclasses.asdict(beat),
        "watched": not silent,
        "at_risk_from": beat.risk_at if beat is not None and silent and not over else None,
    }


def finish_time(state: RunState, head: Head | None) -> float | None:
    """Return when a run finished its last stage, in Unix seconds; None if it has not."""
    if head is None or not is_finished(state, head):
        return None
    return max((stage.at for stage in head.stages.values()), default=None)


def state_in_words(state: str) -> str:
    """Return what a run does, in words. A state of a newer pion is its own word."""
    return _STATES.get(state, printable(state[:_LONGEST_STATE]))


def _saw_lines(beat: WatcherBeat | None, now: float) -> list[str]:
    """Say what the watcher saw, and how long ago; nothing if there is none that knows deadlines."""
    if beat is None or beat.too_old():
        return []
    if beat.saw is None:
        return [
            "the watcher requests nothing for the deadline: its window says why "
            f"({duration(now - beat.at)} ago)"
        ]
    saw, words = beat.saw, state_in_words(beat.saw["state"])
    if saw["work_left"] > 0:
        slack = f"{duration(saw['slack'])} of slack" if saw["slack"] > 0 else "no slack"
        words += (
            f"; {duration(saw['work_left'])} of work left, {slack}, "
            f"{duration(saw['reserve'])} kept in reserve"
        )
    return [f"{words} ({duration(now - beat.at)} ago)"]


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
    if not nobody_watches(state, beat, now):
        return [f"watched by {who}, last sign of life {age} ago"]
    line = f"nobody has watched for {age}; the last was {who}. Start it again: {start}"
    if beat.risk_at is None:
        return [line]
    return [line, f"at risk from {moment(beat.risk_at)}, unless somebody watches"]
