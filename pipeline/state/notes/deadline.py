"""The deadline of a run, kept in its store: `deadline.json`.

The first `pion launch` of a job with a deadline writes it, and `pion deadline` changes it. From
then on, this record holds and the job's section does not. Whoever watches the rental reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.console.formats import duration, moment
from pipeline.job import Deadline
from pipeline.state.owner import Author
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import FORMAT, Amount, Damaged, Time, closed_record
from pipeline.state.run_state import RunState

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
        setting = f"at {moment(self.at)}" if self.at is not None else f"hours {self.hours or 0:g}"
        return f"deadline.{setting}, with a margin of {duration(self.margin)}"


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
    return RecordFile(
        run.store,
        run.key(DEADLINE),
        strictly(RunDeadline),
        advice=f"Set the deadline again: pion deadline {run.url} --hours N, --at T or --off.",
    )
