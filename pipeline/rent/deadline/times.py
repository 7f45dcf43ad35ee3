"""The times behind a deadline's decisions: assumed at first, then measured on the run itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.job import Job
from pipeline.job.digest import Digests, digest_job
from pipeline.job.section import made
from pipeline.machine.rented import PAID_TO_FIRST_STEP
from pipeline.rent.deadline.policy import HANDOVER_SECONDS, Terms
from pipeline.rent.plan.prices import RESTART_SECONDS, NotOffered, look_up
from pipeline.rent.sky_yaml import Candidate, SkyYaml
from pipeline.run.done_and_changed_stages import plan_stages
from pipeline.state.head import Head
from pipeline.state.notes.deadline import RunDeadline
from pipeline.state.rows.metrics import Row
from pipeline.training.cadence import SaveCadence, seconds_between_interruptions

if TYPE_CHECKING:  # they import torch, which takes 600 MB
    from pipeline.rent.plan.speeds import Known

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
        stall=_median([e.get("copy") or e["stall"] for e in saves if e["stall"] is not None]),
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
    stages = (machine.seconds or {}).items()
    return max((seconds / job.section(stage).total_steps for stage, seconds in stages), default=0.0)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


# A speed that was not measured may be this much too high.
SHARE_OF_ESTIMATE = 0.9
# The least margin while the speed is not measured, in seconds and as a share of the work left.
UNMEASURED_MARGIN, UNMEASURED_SHARE = 1800.0, 0.1


@dataclass(frozen=True)
class OnDemand:
    """An on-demand machine, and the work that is left on it.

    Attributes:
        candidate: the entry of the SkyPilot YAML.
        seconds: for each training stage, the seconds that the whole stage takes on it; None if
            that is unknown.
        left: for each training stage, the share of its steps that is left.
        price: dollars per hour of all nodes together; None if unknown.
        measured: whether the speed was measured, and not estimated.
        words: where the speed comes from, or why the machine will not do.
        will_do: whether somebody offers the machine and the job fits on it.
    """

    candidate: Candidate
    seconds: Mapping[str, float] | None
    left: Mapping[str, float]
    price: float | None
    measured: bool
    words: str
    will_do: bool = True

    @property
    def work(self) -> float | None:
        """The seconds of training that are left on it; None if that is unknown."""
        if self.seconds is None:
            return None
        return sum(share * self.seconds.get(stage, 0.0) for stage, share in self.left.items())

    @property
    def by_price(self) -> float:
        """By what machines are ordered: the price, and an unknown price last."""
        return math.inf if self.price is None else self.price

    @property
    def gpu(self) -> str:
        """Return `A40` or `2 × A40`."""
        name = self.candidate.gpu or "a CPU"
        return f"{self.candidate.count} × {name}" if self.candidate.count > 1 else name

    def margin(self, deadline: RunDeadline) -> float:
        """Return the seconds to spare: the run's margin, and more while the speed is estimated."""
        if self.measured or self.work is None:
            return deadline.margin
        return max(deadline.margin, UNMEASURED_MARGIN, UNMEASURED_SHARE * self.work)

    def slack(self, deadline: RunDeadline, now: float) -> float | None:
        """Return the seconds that may still be lost before this machine must be requested, the
        margin not taken off; None if the work is unknown. Its boot is assumed."""
        if self.work is None or deadline.at is None:
            return None
        return deadline.at - now - RESTART_SECONDS - self.work

    def in_time(self, deadline: RunDeadline, now: float) -> bool:
        """Return whether the machine would meet the deadline with its margin if it were requested
        now; its work is known."""
        return (self.slack(deadline, now) or 0.0) >= self.margin(deadline)


class Reached(NamedTuple):
    """The step that a living owner has reported. It may not be committed yet."""

    stage: str
    step: int


def on_demand_machines(
    job: Job, sky_yaml: SkyYaml, head: Head | None, known: Known
) -> list[OnDemand]:
    """Return the on-demand entries of a YAML, in their order, with the job's work that is left
    after `head`. Imports torch.
    """
    left = share_left(job, digest_job(job), head)
    entries = [candidate for candidate in sky_yaml.candidates if not candidate.use_spot]
    return [_machine(job, entry, sky_yaml.num_nodes, left, known) for entry in entries]


def share_left(
    job: Job, digests: Digests, head: Head | None, reached: Reached | None = None
) -> dict[str, float]:
    """Return, for each training stage, the share of its steps that is not committed yet, nor
    `reached` by an owner that lives."""
    states = {plan.stage: plan.state for plan in plan_stages(job, digests, head)}
    left = {}
    for stage in job.train_stages:
        left[stage] = 0.0 if states[stage] == "done" else 1.0
        saved = head.checkpoints if states[stage] == "resume" and head is not None else ()
        steps = [e.step for e in saved if (e.stage, e.digest) == (stage, digests.stages[stage])]
        if reached is not None and reached.stage == stage:
            steps.append(reached.step)
        section = job.section(stage)
        if left[stage] and steps and section.steps_are_known:
            left[stage] = max(0.0, 1.0 - max(steps) / section.total_steps)
    return left


def _machine(
    job: Job, candidate: Candidate, num_nodes: int, left: Mapping[str, float], known: Known
) -> OnDemand:
    offer = look_up(candidate, num_nodes, job.prices)
    if isinstance(offer, NotOffered):
        return OnDemand(candidate, None, left, None, False, offer.note or "", will_do=False)
    from pipeline.rent.plan.estimate import estimate

    guess = estimate(job, offer, known, num_nodes=num_nodes)
    price = None if offer.price is None else offer.price * num_nodes
    stages = [stage for stage in guess.stages if left[stage.stage] > 0]
    unknown = {
        str(guess.problem): guess.problem,
        "the speed of a machine without a GPU is unknown": not guess.stages,
        **{f"{s.stage}: {s.speed_from}": s.tokens_per_second is None for s in stages},
        **{f"{s.stage}: its steps are unknown": s.tokens is None for s in stages},
    }
    if why := made(unknown):
        return OnDemand(candidate, None, left, price, False, why[0], will_do=guess.fits)
    seconds = {
        stage.stage: (stage.seconds or 0.0) / (1.0 if stage.measured else SHARE_OF_ESTIMATE)
        for stage in stages
    }
    measured = all(stage.measured for stage in stages)
    measured_from = (
        "; ".join(dict.fromkeys(stage.speed_from for stage in stages)) or "nothing to train"
    )
    return OnDemand(candidate, seconds, left, price, measured, measured_from, will_do=guess.fits)
