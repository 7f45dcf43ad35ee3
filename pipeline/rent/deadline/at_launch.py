"""Which deadline holds for a run that is about to be rented for: the store's, or else its job's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from pion.errors import BadInput
from pipeline.console.formats import duration, moment
from pipeline.job import Job
from pipeline.job.file import mistake_in
from pipeline.rent.sky_yaml import Candidate, SkyYaml
from pipeline.state.notes.deadline import (
    Asked,
    RunDeadline,
    new_deadline,
    read_deadline,
    withdraw_first_deadline,
    write_first_deadline,
)
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.clock import StoreClock


def deadline_of(run: RunState, job: Job) -> RunDeadline | None:
    """Return the deadline that holds; None if there is none, or it is switched off.

    The store's record holds. Without a record, it is what the job asks for, counted from now by the
    clock of the store.
    Raises as `read_deadline` does.
    """
    record = read_deadline(run)
    if record is None and job.deadline is not None:
        now = StoreClock(run.clock, run.store).now()
        record = new_deadline(Asked.of(job.deadline), "pion launch", now)
    return None if record is None or record.at is None else record


def refuse_past(path: str, overrides: Sequence[str], job: Job) -> None:
    """Raise BadInput, with the line, if the job's deadline is over and the run has no other.

    A run that is late may be rented for again: then the store has its deadline.
    """
    if job.deadline is None or job.deadline.moment is None:
        return
    run = RunState(open_store(job.store), job.name)
    now = StoreClock(run.clock, run.store).now()
    late = now - job.deadline.moment
    if late < 0:
        return
    with contextlib.suppress(StoreError):  # its own check says that the store is down
        if read_deadline(run) is not None:
            return
    sentence = f"{job.deadline.at} was {duration(late)} ago (it is {moment(now)})"
    raise mistake_in(path, overrides, "deadline.at", sentence)


@contextlib.contextmanager
def keeping_deadline(
    run: RunState, job: Job, how: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Write the job's deadline unless the run has one, and say which one holds.

    If the block raises BadInput or StoreError, nothing was rented: a deadline that was written here
    is removed again. Raises as `read_deadline` does.
    """
    setting = None if job.deadline is None else Asked.of(job.deadline)
    now = StoreClock(run.clock, run.store).now()
    wanted = None if setting is None else new_deadline(setting, how, now)
    before = read_deadline(run)
    record = before if wanted is None else write_first_deadline(run, wanted)
    if record is not None:
        say(f"deadline: {record.describe(now)}; {record.describe_author()}")
        if (difference := differs(record, setting, run.url)) is not None:
            say(difference)
    try:
        yield
    except (BadInput, StoreError):
        if wanted is not None and before is None and record == wanted:
            with contextlib.suppress(BadInput, StoreError):
                withdraw_first_deadline(run, wanted)
        raise


def differs(record: RunDeadline, asked: Asked | None, run: str) -> str | None:
    """Return what to say if the job no longer asks for what it asked for at the first launch."""
    if asked == record.asked:
        return None
    setting_now = "no deadline" if asked is None else asked.describe()
    before = "no deadline" if record.asked is None else record.asked.describe()
    return (
        f"the job now says {setting_now}, and said {before} before. The deadline above "
        f"holds, and not the job's. To change it: pion deadline {run} --hours N, --at T or --off"
    )


def held_back(sky_yaml: SkyYaml) -> tuple[list[Candidate], list[Candidate]]:
    """Return the machines to wait for, and those that a deadline holds back until time is short.

    Machines on demand are held back, unless there are no others.
    """
    spot = [candidate for candidate in sky_yaml.candidates if candidate.use_spot]
    on_demand = [candidate for candidate in sky_yaml.candidates if not candidate.use_spot]
    return (spot, on_demand) if spot else (on_demand, [])
