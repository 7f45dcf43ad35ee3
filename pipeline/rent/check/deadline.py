"""Check that a deadline can be met with the on-demand machines of a SkyPilot YAML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.console.formats import duration, hours, moment, money
from pipeline.job import Job
from pipeline.machine.time_limit import within
from pipeline.rent.check import CheckRow
from pipeline.rent.check.job import STORE_SECONDS
from pipeline.rent.check.machines import check_worst_case, lowest_spot_price
from pipeline.rent.deadline.at_launch import held_back
from pipeline.rent.deadline.times import OnDemand, on_demand_machines
from pipeline.rent.plan.speeds import Known, known_speeds
from pipeline.rent.sky_yaml import SkyYaml, trains
from pipeline.state.head import Head
from pipeline.state.notes.deadline import Asked, RunDeadline, new_deadline, read_deadline
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.clock import StoreClock


@dataclass(frozen=True)
class Situation:
    """What a deadline is checked against.

    `now` is Unix seconds. `how_to_change` says how a person changes the deadline.
    """

    deadline: RunDeadline
    now: float
    how_to_change: str
    sky_yaml: SkyYaml
    machines: Sequence[OnDemand]

    @property
    def left(self) -> float:
        """The seconds until the deadline."""
        return (self.deadline.at or 0.0) - self.now


def check_deadline(job: Job, sky_yaml: SkyYaml, *, force: bool) -> list[CheckRow]:
    """Check that there is an on-demand machine with which the run can meet its deadline, and that
    waiting for spot saves money. Raises BadInput if not: nothing should be rented then.

    `force` accepts a spot price above the on-demand price. Returns nothing without a deadline, and
    for a rental that does not train: how long it takes is not known.
    """
    if not trains(sky_yaml, job):
        return []
    run = RunState(open_store(job.store), job.name)
    stored, head, now = _read(run)
    deadline = stored
    if stored is None and job.deadline is not None:
        deadline = new_deadline(Asked.of(job.deadline), "pion launch", now)
    if deadline is None or deadline.at is None:
        return []
    known = known_speeds(job)
    machines = on_demand_machines(job, sky_yaml, head, known)
    change = (
        f"pion deadline {run.url} --hours N, --at T or --off"
        if stored is not None
        else "deadline.hours, deadline.at or deadline.margin in the job"
    )
    seen = Situation(deadline, now, change, sky_yaml, machines)
    in_time = require_in_time(seen)
    if not force:
        spot = lowest_spot_price(job, sky_yaml, Known(known.runs))
        refuse_dear_spot(sky_yaml, spot, in_time)
    first = min(in_time, key=lambda machine: machine.by_price)
    return [*_rows(seen, in_time, first), *check_worst_case(job, head, first)]


def _read(run: RunState) -> tuple[RunDeadline | None, Head | None, float]:
    """Return the deadline that the store has, HEAD, and the time (Unix seconds) by the clock of the
    store. Of a store that is down, the time is by the clock of this machine."""
    clock = StoreClock(run.clock, run.store)
    try:
        return within(STORE_SECONDS, lambda: (read_deadline(run), run.read(), clock.now()))
    except (StoreError, TimeoutError):  # the store's own check reports it
        return None, None, run.clock.now()


def require_in_time(seen: Situation) -> list[OnDemand]:
    """Return the on-demand machines that would meet the deadline if one were requested now.

    Raises BadInput if there is none.
    """
    path = seen.sky_yaml.path
    if not seen.machines:
        raise BadInput(
            f"{path} has no on-demand machine, so nothing could meet the deadline when spot "
            "machines are gone. Add entries with `use_spot: false` (sky/runpod-deadline.yaml has "
            f"some), or change the deadline: {seen.how_to_change}"
        )
    will_do = [machine for machine in seen.machines if machine.will_do]
    if not will_do:
        why = "; ".join(f"{machine.gpu}: {machine.words}" for machine in seen.machines)
        raise BadInput(f"no on-demand machine of {path} will do for the deadline: {why}")
    known = [machine for machine in will_do if machine.work is not None]
    if not known:
        why = "; ".join(f"{machine.gpu}: {machine.words}" for machine in will_do)
        raise BadInput(
            f"it is not known how long the work takes on demand, so the deadline can't be planned "
            f"({why}). Measure the GPU with `pion bench`, or use on-demand machines of other types"
        )
    in_time = [machine for machine in known if machine.in_time(seen.deadline, seen.now)]
    if not in_time:
        why = "; ".join(_too_slow(machine, seen) for machine in known)
        raise BadInput(
            f"{why}. Give more time, or use faster machines on demand: {seen.how_to_change}"
        )
    return in_time


def refuse_dear_spot(sky_yaml: SkyYaml, spot: float | None, in_time: Sequence[OnDemand]) -> None:
    """Raise BadInput if every spot machine costs more than a machine on demand that is in time.

    `spot` is the lowest spot price, in dollars per hour of all nodes; None if it is unknown.
    """
    prices = [machine.price for machine in in_time if machine.price is not None]
    if spot is None or not prices or spot <= min(prices):
        return
    raise BadInput(
        f"the cheapest spot machine costs {money(spot)}/h, more than on demand "
        f"({money(min(prices))}/h), so waiting for spot would save nothing. Remove the spot "
        f"entries from {sky_yaml.path}, set `prices` in the job, or pass --force"
    )


def _too_slow(machine: OnDemand, seen: Situation) -> str:
    """Return `28.0 h of work on A40 on demand, 27.0 h left, …`."""
    assert machine.work is not None
    left = f"{hours(seen.left)} left" if seen.left >= 0 else f"late by {hours(-seen.left)}"
    return (
        f"{hours(machine.work)} of work on {machine.gpu} on demand, {left}, and a margin of "
        f"{duration(machine.margin(seen.deadline))} ({_speed(machine)})"
    )


def _rows(seen: Situation, in_time: Sequence[OnDemand], first: OnDemand) -> Iterator[CheckRow]:
    waited, kept = held_back(seen.sky_yaml)
    spare = (first.slack(seen.deadline, seen.now) or 0.0) - first.margin(seen.deadline)
    words = (
        f"{seen.deadline.describe(seen.now)}. A machine on demand must be requested by "
        f"{moment(seen.now + spare)} ({first.gpu}) at the latest. Somebody must "
        "watch then: keep `pion launch` or `pion watch` running"
    )
    yield CheckRow("deadline", True, words)
    if kept and waited:
        words = f"{len(kept)} on-demand entries are held back until time is short"
        yield CheckRow("deadline", True, words)
    for machine in seen.machines:
        name = f"{machine.gpu} on demand"
        if machine.work is None:
            yield CheckRow(name, None, f"not counted for the deadline: {machine.words}")
        elif machine not in in_time:
            yield CheckRow(name, None, f"too slow for the deadline: {_too_slow(machine, seen)}")
        else:
            slack = machine.slack(seen.deadline, seen.now) or 0.0
            words = (
                f"{hours(machine.work)} of work ({_speed(machine)}), slack {hours(slack)}, margin "
                f"{duration(machine.margin(seen.deadline))}"
            )
            yield CheckRow(name, True, words)


def _speed(machine: OnDemand) -> str:
    """Return where the speed comes from; of an estimate, that its time was made longer."""
    return machine.words if machine.measured else f"{machine.words}; 1/0.9 of the estimated time"
