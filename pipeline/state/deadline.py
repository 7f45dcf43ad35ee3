"""The deadline of a run, kept in its store: `deadline.json`. Is it met, and does anybody watch?

The first `pion launch` of a job with a deadline writes it, and `pion deadline` changes it. From
then on, this record holds and the job's section does not. Whoever watches the rental reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import duration, moment, printable
from pipeline.job import Deadline
from pipeline.state.head import Head
from pipeline.state.owner import Author
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import FORMAT, Amount, Damaged, Time, closed_record
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished
from pipeline.state.watcher_beat import Saw, WatcherBeat, nobody_watches, read_beat

DEADLINE = "deadline.json"


@closed_record
@dataclass(frozen=True)
class Asked:
    """What a job's section `deadline` says: hours, or a moment in Unix seconds, and the margin in
    seconds."""

    hours: Amount | None
    at: Time | None
    margin: Amount

    @classmethod
    def of(cls, deadline: Deadline) -> Asked:
        """Return what the section says."""
        return cls(deadline.hours, deadline.moment, deadline.margin)

    def describe(self) -> str:
        """Return `deadline.hours 42` or `deadline.at 2026-12-01 18:00:00 UTC`, with the margin."""
        what = f"at {moment(self.at)}" if self.at is not None else f"hours {self.hours or 0:g}"
        return f"deadline.{what}, with a margin of {duration(self.margin)}"


@closed_record
@dataclass(frozen=True)
class RunDeadline:
    """The deadline of a run. Its format number changes if an older watcher would misread it.

    Attributes:
        at: the moment at which the run should be done, in Unix seconds; None: no deadline holds.
        margin: seconds to spare before this moment.
        set_at: when this record was written, in Unix seconds.
        by: who wrote it.
        how: the command that wrote it: `pion launch`, `pion hop` or `pion deadline`.
        asked: what the job said when the run was first rented; None if it said nothing.
    """

    at: Time | None
    margin: Amount
    set_at: Time
    by: Author
    how: str
    asked: Asked | None = None
    format: int = FORMAT

    def describe(self, now: float) -> str:
        """Return `2026-12-01 18:00:00 UTC (in 31 h 00 min)`, or `none (switched off)`."""
        if self.at is None:
            return "none (switched off)"
        left = self.at - now
        when = f"in {duration(left)}" if left >= 0 else f"{duration(-left)} ago"
        return f"{moment(self.at)} ({when})"

    def describe_author(self) -> str:
        """Return `set by pion launch (ann on host-a) at 2026-11-29 20:00:00 UTC`."""
        return f"set by {self.how} ({self.by.describe()}) at {moment(self.set_at)}"


def read_deadline(run: RunState) -> RunDeadline | None:
    """Return the deadline record of a run; None if it never had one.

    Raises `Damaged`, BadInput for another format version, and StoreError.
    """
    return _file(run).read()[0]


def new_deadline(asked: Asked, how: str, now: float) -> RunDeadline:
    """Return the deadline that a job asks for, counted from `now` (Unix seconds)."""
    at = asked.at if asked.at is not None else now + 3600 * (asked.hours or 0.0)
    return RunDeadline(at, asked.margin, now, Author.me(), how, asked)


def write_first_deadline(run: RunState, deadline: RunDeadline) -> RunDeadline:
    """Write the deadline unless the run has one; return the one that holds.

    Raises as `read_deadline` does.
    """
    return change_deadline(run, lambda present: present or deadline)


def change_deadline(
    run: RunState,
    change: Callable[[RunDeadline | None], RunDeadline],
    *,
    replace_damaged: bool = False,
) -> RunDeadline:
    """Replace the run's deadline by what `change` makes of it, and return the result.

    If another process writes in between, `change` gets the other record. With `replace_damaged`, a
    damaged record counts as none. Raises as `read_deadline` does.
    """
    return _file(run).change(change, None, as_none=Damaged if replace_damaged else ())


def withdraw_first_deadline(run: RunState, deadline: RunDeadline) -> None:
    """Remove a deadline whose rental was refused, unless somebody has changed it since.

    Raises StoreError.
    """
    if read_deadline(run) == deadline:
        run.store.delete(run.key(DEADLINE))
        run.store.flush()


def _file(run: RunState) -> RecordFile[RunDeadline]:
    advice = f"Set the deadline again: pion deadline {run.url} --hours N, --at T or --off."
    return RecordFile(run.store, run.key(DEADLINE), strictly(RunDeadline), advice=advice)


# What a run does, by the state that its watcher saw.
_STATES = {
    "spot": "on a spot machine",
    "waiting": "waiting for a spot machine",
    "arming": "requesting a machine on demand",
    "on demand": "on a machine on demand",
    "late": "too late for the deadline, so on demand to the end",
    "done": "nothing is left to do",
}


def deadline_of(
    state: RunState, head: Head | None, now: float
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return a run's deadline as plain JSON, and what there is to say about it, in lines.

    If the run never had one, these are None and no lines. Raises StoreError.
    """
    try:
        record = read_deadline(state)
    except BadInput as error:
        return {"error": str(error)}, [f"the deadline can't be read: {error}"]
    if record is None:
        return None, []
    beat, finished_at = read_beat(state), finish_time(state, head)
    silent = nobody_watches(state, beat, now)
    over = record.at is None or finished_at is not None
    as_json = {
        **dataclasses.asdict(record),
        "finished_at": finished_at,
        "met": None if record.at is None or finished_at is None else finished_at <= record.at,
        "watcher": beat and dataclasses.asdict(beat),
        "watched": not silent,
        "at_risk_from": beat.risk_at if beat is not None and silent and not over else None,
    }
    words = f"deadline: {record.describe(now)}"
    if record.at is None:
        return as_json, [f"{words}; {record.describe_author()}"]
    if finished_at is not None:
        met = end_in_words(record.at, finished_at)
        return as_json, [f"deadline: {moment(record.at)}, {met}"]
    words += f", margin {duration(record.margin)}; {record.describe_author()}"
    return as_json, [words, *_watcher_lines(state, beat, now)]


def finish_time(state: RunState, head: Head | None) -> float | None:
    """Return when a run finished its last stage, in Unix seconds; None if it has not."""
    if head is None or not is_finished(state, head):
        return None
    return max((stage.at for stage in head.stages.values()), default=None)


def end_in_words(at: float, finished_at: float) -> str:
    """Return `met, 3 h 02 min early` or `missed by 2 h 06 min` of a deadline at `at`."""
    left = at - finished_at
    return f"met, {duration(left)} early" if left >= 0 else f"missed by {duration(-left)}"


def state_in_words(state: str) -> str:
    """Return what a run does, in words. A state of a newer pion is its own word."""
    return _STATES.get(state, printable(state[:40]))


def _in_words(saw: Saw | None) -> str:
    """Say what a watcher that knows deadlines saw."""
    if saw is None:
        return "the watcher requests nothing for the deadline: its window says why"
    words = state_in_words(saw["state"])
    if saw["work_left"] > 0:
        slack = f"{duration(saw['slack'])} of slack" if saw["slack"] > 0 else "no slack"
        words += (
            f"; {duration(saw['work_left'])} of work left, {slack}, "
            f"{duration(saw['reserve'])} kept in reserve"
        )
    return words


def _watcher_lines(state: RunState, beat: WatcherBeat | None, now: float) -> list[str]:
    """Say what the watcher saw, who watches the run, and what follows for the deadline if nobody
    does."""
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
    lines = [f"{_in_words(beat.saw)} ({age} ago)"]
    if not nobody_watches(state, beat, now):
        return [*lines, f"watched by {who}, last sign of life {age} ago"]
    lines.append(f"nobody has watched for {age}; the last was {who}. Start it again: {start}")
    if beat.risk_at is not None:
        lines.append(f"at risk from {moment(beat.risk_at)}, unless somebody watches")
    return lines
