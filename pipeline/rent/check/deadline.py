"""Check that a deadline can be met with the on-demand machines of a SkyPilot YAML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.formats import duration, hours, moment, money
from pipeline.job import Job
from pipeline.machine.time_limit import within
from pipeline.rent.check import CheckRow
from pipeline.rent.check.budget import check_worst_case
from pipeline.rent.check.job import STORE_SECONDS
from pipeline.rent.check.machines import lowest_spot_price
from pipeline.rent.deadline.at_launch import held_back
from pipeline.rent.deadline.times import OnDemand, on_demand_machines
from pipeline.rent.plan.speeds import known_speeds
from pipeline.rent.sky_yaml import SkyYaml, trains
from pipeline.state.head import Head
from pipeline.state.notes.deadline import Asked, RunDeadline, new_deadline, read_deadline
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError, open_store
from pipeline.state.stores.clock import StoreClock


def check_deadline(job: Job, sky_yaml: SkyYaml, *, force: bool) -> Iterator[CheckRow]:
    """Check that there is an on-demand machine with which the run can meet its deadline, and that
    waiting for spot saves money. Raises BadInput if not: nothing should be rented then.

    `force` accepts a spot price above the on-demand price. Yields nothing without a deadline, and
    for a rental that does not train: how long it takes is not known.
    """
    if not trains(sky_yaml, job):
        return
    run = RunState(open_store(job.store), job.name)
    stored, head, now = _read(run)
    deadline, change = stored, f"pion deadline {run.url} --hours N, --at T or --off"
    if stored is None and job.deadline is not None:
        deadline = new_deadline(Asked.of(job.deadline), "pion launch", now)
        change = "deadline.hours, deadline.at or deadline.margin in the job"
    if deadline is None or deadline.at is None:
        return
    speeds = known_speeds(job)
    machines = on_demand_machines(job, sky_yaml, head, speeds)
    in_time = machines_in_time(machines, deadline, now, sky_yaml.path, change)
    if not force:
        refuse_dear_spot(sky_yaml, lowest_spot_price(job, sky_yaml, speeds), in_time)
    first = min(in_time, key=lambda machine: machine.by_price)
    spare = (first.slack(deadline, now) or 0.0) - first.margin(deadline)
    sentence = (
        f"{deadline.describe(now)}. A machine on demand must be requested by "
        f"{moment(now + spare)} ({first.gpu}) at the latest. Somebody must "
        "watch then: keep `pion launch` or `pion watch` running"
    )
    yield CheckRow("deadline", True, sentence)
    waited, held_entries = held_back(sky_yaml)
    if held_entries and waited:
        sentence = f"{len(held_entries)} on-demand entries are held back until time is short"
        yield CheckRow("deadline", True, sentence)
    yield from (_row(machine, deadline, now) for machine in machines)
    yield from check_worst_case(job, head, first)


def _read(run: RunState) -> tuple[RunDeadline | None, Head | None, float]:
    """Return the deadline that the store has, HEAD, and the time (Unix seconds) by the clock of the
    store. Of a store that is down, the time is by the clock of this machine."""
    clock = StoreClock(run.clock, run.store)
    try:
        return within(STORE_SECONDS, lambda: (read_deadline(run), run.read(), clock.now()))
    except (StoreError, TimeoutError):  # the store's own check reports it
        return None, None, run.clock.now()


def machines_in_time(
    machines: Sequence[OnDemand], deadline: RunDeadline, now: float, rental: Path, change: str
) -> list[OnDemand]:
    """Return the on-demand machines of a rental that would meet the deadline if one were requested
    now. Raises BadInput if there is none; `change` says how a person changes the deadline."""
    if not machines:
        raise BadInput(
            f"{rental} has no on-demand machine, so nothing could meet the deadline when spot "
            "machines are gone. Add entries with `use_spot: false` (sky/runpod-deadline.yaml has "
            f"some), or change the deadline: {change}"
        )
    will_do = [machine for machine in machines if machine.will_do]
    timed = [machine for machine in will_do if machine.work is not None]
    in_time = [machine for machine in timed if machine.in_time(deadline, now)]
    if in_time:
        return in_time
    if timed:
        why = "; ".join(_too_slow(machine, deadline, now) for machine in timed)
        raise BadInput(f"{why}. Give more time, or use faster machines on demand: {change}")
    why = "; ".join(f"{machine.gpu}: {machine.words}" for machine in will_do or machines)
    if will_do:
        raise BadInput(
            f"it is not known how long the work takes on demand, so the deadline can't be planned "
            f"({why}). Measure the GPU with `pion bench`, or use on-demand machines of other types"
        )
    raise BadInput(f"no on-demand machine of {rental} will do for the deadline: {why}")


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


def _too_slow(machine: OnDemand, deadline: RunDeadline, now: float) -> str:
    """Return `28.0 h of work on A40 on demand, 27.0 h left, …`."""
    assert machine.work is not None
    seconds = (deadline.at or 0.0) - now
    left = f"{hours(seconds)} left" if seconds >= 0 else f"late by {hours(-seconds)}"
    return (
        f"{hours(machine.work)} of work on {machine.gpu} on demand, {left}, and a margin of "
        f"{duration(machine.margin(deadline))} ({_speed(machine)})"
    )


def _row(machine: OnDemand, deadline: RunDeadline, now: float) -> CheckRow:
    """Return the row of a machine on demand: whether it would meet the deadline."""
    name = f"{machine.gpu} on demand"
    slack = machine.slack(deadline, now)
    if machine.work is None or slack is None:
        return CheckRow(name, None, f"not counted for the deadline: {machine.words}")
    if not machine.in_time(deadline, now):
        too_slow = _too_slow(machine, deadline, now)
        return CheckRow(name, None, f"too slow for the deadline: {too_slow}")
    sentence = (
        f"{hours(machine.work)} of work ({_speed(machine)}), slack {hours(slack)}, margin "
        f"{duration(machine.margin(deadline))}"
    )
    return CheckRow(name, True, sentence)


def _speed(machine: OnDemand) -> str:
    """Return where the speed comes from; of an estimate, that its time was made longer."""
    return machine.words if machine.measured else f"{machine.words}; 1/0.9 of the estimated time"
