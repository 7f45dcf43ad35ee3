"""Decide what a rental needs, from one look at it and the work that is left.

Only `read_plan` reads anything, and starts a process. The rest asks and changes nothing, and reads
no clock. rental_state.py has when a market is left alone.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.job import Job
from pipeline.job.digest import Digests, digest_job, model_inputs
from pipeline.machine.child_process import in_child
from pipeline.rent.deadline.policy import Action, Market, Seen, State, Terms, decide
from pipeline.rent.deadline.times import (
    Measured,
    OnDemand,
    Reached,
    cadence_of,
    measured_in,
    on_demand_machines,
    share_left,
    step_seconds,
    terms_of,
)
from pipeline.rent.managed.keep.rental_state import (
    has_machine,
    owner_of,
    rental_of,
    see,
    see_any,
)
from pipeline.rent.managed.look.look import Look
from pipeline.rent.managed.provider.jobs import ManagedJob, place_of
from pipeline.rent.managed.provider.recorded_task import (
    MACHINES,
    machines_of,
    recorded_task,
    variable_of,
)
from pipeline.rent.managed.provider.task import with_candidates
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.head import Head
from pipeline.state.notes.deadline import RunDeadline
from pipeline.state.notes.watcher_beat import Saw
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.shared.speeds import PastSpeed, read_train_speeds
from pipeline.state.status.recorded_job import recorded_job


@dataclass(frozen=True)
class Decision:
    """What was known at one look, and what follows.

    `plan` is None without a deadline. `options` are the machines to request on demand, the one that
    the work is timed on first.
    """

    look: Look
    plan: Plan | None
    terms: Terms
    seen: Seen
    options: Sequence[OnDemand]
    action: Action

    def machines(self, market: Market) -> SkyYaml:
        """Return the launch's task with all its spot machines, or with those of `options`."""
        assert self.plan is not None
        entries = self.plan.machines.candidates
        wanted = [candidate for candidate in entries if candidate.use_spot]
        if market is Market.ON_DEMAND:
            wanted = [option.candidate for option in self.options]
        return with_candidates(self.plan.machines, wanted)


def decide_now(
    look: Look, plan: Plan, deadline: RunDeadline, now: float, *, floor_seconds: float
) -> Decision | None:
    """Return what follows from a look at `now` (Unix seconds); None if no machine on demand will
    do.

    `floor_seconds` is the shortest time between saves that the run's store allows.
    """
    options = _options(look, plan.on_demand, deadline, now)
    if not options:
        return None
    job, measured = plan.job, plan.measured
    cadence = cadence_of(job, look.head, measured, floor_seconds)
    machines = with_work_left(plan, look, cadence.lag(step_seconds(options[0], job)))
    options = _options(look, machines, deadline, now)
    first = options[0]
    terms = terms_of(deadline, first, job, look.head, measured, floor_seconds=floor_seconds)
    seen = see(look, cadence.pace(step_seconds(first, job)) * (first.work or 0.0), now)
    return Decision(look, plan, terms, seen, options, decide(terms, seen))


def decide_without_deadline(look: Look, now: float) -> Decision:
    """Return what follows from a look at `now` (Unix seconds) if there is no hurry: infinite slack.
    So one rental is wanted, and the policy never rents on demand for lack of time."""
    terms = Terms(math.inf, margin=0.0, boot=0.0, handover=0.0, lag=0.0, notice=0.0, life=1.0)
    seen = see_any(look, now)
    return Decision(look, None, terms, seen, (), decide(terms, seen))


def risk_at(decision: Decision) -> float | None:
    """Return the last moment at which somebody must watch, in Unix seconds; None: nobody must.

    A machine on demand is replaced by SkyPilot. Only the end of waiting for spot needs a watcher.
    """
    action, seen = decision.action, decision.seen
    alone = action.state is State.DEMAND and seen.spot is None and action.request is None
    if alone or action.state in (State.DONE, State.LATE, State.ARMING):
        return None
    return max(action.numbers.spot_until, seen.now)


def saw(decision: Decision) -> Saw:
    """Return what the run's status shows of a decision."""
    numbers = decision.action.numbers
    return Saw(
        state=decision.action.state.value,
        slack=numbers.slack,
        reserve=numbers.reserve,
        work_left=numbers.work_left,
    )


def _options(
    look: Look, machines: Sequence[OnDemand], deadline: RunDeadline, now: float
) -> list[OnDemand]:
    """Return the machines to request on demand, the one that the work is timed on first.

    That is the machine that the run has, or else the cheapest of those that are requested. So the
    decision does not change because a request has waited for long.
    """
    options = choices(machines, deadline, now)
    stands = rental_of(look, Market.ON_DEMAND)
    if stands is None:
        return options
    has = place_of(stands.job).gpu if has_machine(stands) else None
    requested = json.loads(variable_of(stands.job, "PION_PRICES") or "{}")
    gpus = requested if has is None else (has,)
    mine = [m for m in machines if m.candidate.gpu in gpus and m.will_do and m.work is not None]
    mine.sort(key=lambda machine: machine.by_price)
    return [*mine[:1], *(option for option in options if option not in mine[:1])]


# What a run has measured is read again every so many seconds.
MEASURE_SECONDS = 600.0
# And prices, and results of `pion bench`.
PRICE_SECONDS = 3600.0


@dataclass(frozen=True)
class Plan:
    """What can be requested: machines of both markets, for tasks like that of the job `like`.

    Attributes:
        on_demand: the on-demand machines that could do the rest of `job`, in the order of the YAML.
        timed: their times when these were found out.
        measured: what the run has measured.
        of_job: the digest of the run's job file; None before the first claim.
        at: when all this was read, by the monotonic clock.
    """

    like: ManagedJob
    machines: SkyYaml
    job: Job
    digests: Digests
    on_demand: Sequence[OnDemand]
    timed: Timed
    measured: Measured
    of_job: str | None
    at: float


@dataclass(frozen=True)
class Timed:
    """The times of on-demand machines, found out `at` (by the monotonic clock).

    `of` is what they depend on, apart from prices and results of `pion bench`: the job, the
    `resources` and the number of nodes, the stages that are left, and the speeds of past runs.
    """

    of: tuple[Any, ...]
    at: float
    machines: Sequence[OnDemand]


def read_plan(state: RunState, look: Look, known: Plan | None) -> Plan | None:
    """Return the plan of a rental: the one that is `known`, unless it may have changed. None if the
    newest job was not launched with a deadline.

    Raises BadInput if the run's job can't be read here.
    """
    like = look.followed.job  # an older one may be of other machines, before a hop
    if not variable_of(like, MACHINES):
        return None
    now, of_job = state.clock.monotonic(), look.head.job if look.head else None
    if known is not None:
        same = (known.like.id, known.of_job) == (like.id, of_job)
        if look.stale or (same and now - known.at < MEASURE_SECONDS):
            return known
    machines, job = machines_of(like), _job(state, look.head, like)
    digests = digest_job(job)
    left = share_left(job, digests, look.head)
    past = read_train_speeds(state.store, model_inputs(job.model_config_resolved()))
    stages = {stage for stage, share in left.items() if share > 0}
    of = (job, machines.config["resources"], machines.num_nodes, stages, past)
    timed = known.timed if known is not None else None
    if timed is None or timed.of != of or now - timed.at >= PRICE_SECONDS:
        values = job, machines, look.head, past
        # torch would take 600 MB for as long as the run is watched.
        here = "torch" in sys.modules
        times = time_machines(*values) if here else in_child(time_machines, *values)
        timed = Timed(of, now, times)
    on_demand = [replace(machine, left=left) for machine in timed.machines]
    events = read_events(state.store, state.name) if look.head is not None else []
    return Plan(like, machines, job, digests, on_demand, timed, measured_in(events), of_job, at=now)


def time_machines(
    job: Job, machines: SkyYaml, head: Head | None, past: Sequence[PastSpeed]
) -> list[OnDemand]:
    """Return the on-demand machines with the job's work that is left after `head`. Imports
    torch."""
    from pipeline.rent.plan.speeds import Known, bench_results

    return on_demand_machines(job, machines, head, Known(past, bench_results(())))


def _job(state: RunState, head: Head | None, like: ManagedJob) -> Job:
    job = recorded_job(state, head) if head is not None else None
    if job is not None:
        return job
    path = variable_of(like, "JOB") or ""
    if isinstance(folder := recorded_task(like).get("workdir"), str):
        path = str(Path(folder, path))
    try:
        return read_job(path, shlex.split(variable_of(like, "OVERRIDES") or ""))
    except BadInput as error:
        raise BadInput(
            f"the deadline is not kept until a machine has claimed the run, because the job can't "
            f"be read here ({error}). Run `pion watch` in the folder of `pion launch`"
        ) from error


def choices(machines: Sequence[OnDemand], deadline: RunDeadline, now: float) -> list[OnDemand]:
    """Return the machines to request on demand, the one to prefer first.

    These are all that would be in time, the cheapest first. If none would be, it is all whose speed
    is known, the fastest first.
    """
    timed = [machine for machine in machines if machine.will_do and machine.work is not None]
    in_time = [machine for machine in timed if machine.in_time(deadline, now)]
    if in_time:
        return sorted(in_time, key=lambda machine: machine.by_price)
    return sorted(timed, key=lambda m: m.work or 0.0)


def with_work_left(plan: Plan, look: Look, lag: float) -> list[OnDemand]:
    """Return the machines on demand with the work that is left now.

    Steps that a living owner has reported count as done. It is taken to have worked since its last
    report, for `lag` seconds at most.
    """
    reached, since = None, 0.0
    if owner_of(look) is not None:
        status = look.status or {}
        progress, age = status.get("progress") or {}, status.get("heartbeat_age") or 0.0
        if progress.get("stage") is not None and progress.get("step") is not None:
            reached = Reached(progress["stage"], progress["step"])
        since = min(max(age, 0.0), lag)
    left = share_left(plan.job, plan.digests, look.head, reached)
    return [_less(replace(machine, left=left), since) for machine in plan.on_demand]


def _less(machine: OnDemand, seconds: float) -> OnDemand:
    """Return the machine with so many seconds of work less, from the first stage that is left."""
    total = machine.work
    if not total:
        return machine
    share = max(0.0, 1.0 - seconds / total)
    return replace(machine, left={stage: part * share for stage, part in machine.left.items()})
