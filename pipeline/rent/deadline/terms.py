"""The times behind a deadline's decisions: assumed at first, then measured on the run itself."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from pipeline.job import Job
from pipeline.machine.rented import PAID_TO_FIRST_STEP
from pipeline.rent.deadline.on_demand import OnDemand
from pipeline.rent.deadline.policy import HANDOVER_SECONDS, Terms
from pipeline.rent.plan.estimate import RESTART_SECONDS
from pipeline.state.deadline import RunDeadline
from pipeline.state.metrics import Row
from pipeline.state.records import Head
from pipeline.training.cadence import SaveCadence, seconds_between_interruptions

# SkyPilot notices within 60 to 70 s that a machine is gone, and the watcher looks every 10 s.
NOTICE_SECONDS = 80.0


@dataclass(frozen=True)
class Measured:
    """What the run has measured, as medians in seconds. None: nothing yet.

    Attributes:
        boot: from the start of payment for a machine until its first step.
        stall: how long a save stops training.
        write: from then until the save is committed.
    """

    boot: float | None = None
    stall: float | None = None
    write: float | None = None


def measured_in(events: list[Row]) -> Measured:
    """Return what a run's events say."""
    phases = [event for event in events if event["event"] == "phase"]
    boots = [event["seconds"] for event in phases if event["name"] == PAID_TO_FIRST_STEP]
    saves = [event for event in events if event["event"] == "saved"]
    return Measured(
        boot=_median(boots),
        stall=_median([e["stall"] for e in saves if e["stall"] is not None]),
        write=_median([e["write"] for e in saves if e["write"] is not None]),
    )


def terms_of(
    deadline: RunDeadline,
    machine: OnDemand,
    job: Job,
    head: Head | None,
    measured: Measured,
    *,
    floor_seconds: float,
) -> Terms:
    """Return the terms of a run whose work is timed on `machine`.

    `floor_seconds` is the shortest time between saves that its store allows.
    """
    cadence = cadence_of(job, head, measured, floor_seconds)
    return Terms(
        deadline=deadline.at or 0.0,
        margin=machine.margin(deadline),
        boot=RESTART_SECONDS if measured.boot is None else measured.boot,
        handover=HANDOVER_SECONDS,
        lag=cadence.lag(step_seconds(machine, job)),
        notice=NOTICE_SECONDS,
        life=cadence.preemption_seconds,
    )


def cadence_of(
    job: Job, head: Head | None, measured: Measured, floor_seconds: float
) -> SaveCadence:
    """Return when the run saves, by what it has measured."""
    assumed = 3600 * job.checkpoint.preemption_hours
    cadence = SaveCadence(
        every_steps=job.checkpoint.every_steps,
        every_seconds=job.checkpoint.every_seconds,
        preemption_seconds=(
            assumed if head is None else seconds_between_interruptions(head, assumed)
        ),
        last_save=0.0,
        floor_seconds=floor_seconds,
        write_seconds=measured.write or 0.0,
    )
    if measured.stall is not None:
        cadence.stall = measured.stall
    return cadence


def step_seconds(machine: OnDemand, job: Job) -> float:
    """Return the seconds of the longest step that is left; 0 if nothing is left to train."""
    seconds = machine.seconds or {}
    steps = {stage: job.section(stage).total_steps for stage in seconds}
    return max((seconds[stage] / steps[stage] for stage in seconds), default=0.0)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
