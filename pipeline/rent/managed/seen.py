"""What the policy of a deadline needs to know, from a look at the rental.

Nothing here asks or changes anything, or reads a clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.rent.deadline.on_demand import OnDemand, Reached, share_left
from pipeline.rent.deadline.policy import Market, Rental, Seen
from pipeline.rent.deadline.terms import Measured
from pipeline.rent.managed.diagnose import may_be_at_work
from pipeline.rent.managed.lookout import JobLook, Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import market_of
from pipeline.rent.managed.place import place_of
from pipeline.rent.managed.recorded_task import launch_id_of, variable_of
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.deadline import RunDeadline
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS, SILENCE_SECONDS

# From the end of training to the end of the run: evaluation and publishing. Assumed; the margin is
# for the rest.
LAST_SECONDS = 60.0


@dataclass(frozen=True)
class Work:
    """A job, and the on-demand machines that could do the rest of it, in the order of the YAML."""

    job: Job
    digests: Digests
    machines: tuple[OnDemand, ...]
    measured: Measured


def choices(machines: Sequence[OnDemand], deadline: RunDeadline, now: float) -> list[OnDemand]:
    """Return the machines to request on demand, the one to prefer first.

    These are all that would be in time, the cheapest first. If none would be, it is all whose speed
    is known, the fastest first.
    """
    known = [machine for machine in machines if machine.will_do and machine.work is not None]
    in_time = [m for m in known if (m.slack(deadline, now) or 0.0) >= m.margin(deadline)]
    if in_time:
        return sorted(in_time, key=lambda m: math.inf if m.price is None else m.price)
    return sorted(known, key=lambda m: m.work or 0.0)


def with_work_left(work: Work, look: Look, lag: float) -> Work:
    """Return the machines with the work that is left now.

    Steps that a living owner has reported count as done. It is taken to have worked since its last
    report, for `lag` seconds at most.
    """
    alive = owner_of(look) is not None
    left = share_left(work.job, work.digests, look.head, _reached(look) if alive else None)
    since = min(_report_age(look), lag) if alive else 0.0
    return replace(work, machines=tuple(_less(replace(m, left=left), since) for m in work.machines))


def _less(machine: OnDemand, seconds: float) -> OnDemand:
    """Return the machine with so many seconds of work less, from the first stage that is left."""
    total = machine.work
    if not total or machine.seconds is None:
        return machine
    share = max(0.0, 1.0 - seconds / total)
    return replace(machine, left={stage: part * share for stage, part in machine.left.items()})


def see_any(look: Look, now: float) -> Seen:
    """Return what the policy sees without a deadline: one rental, whatever its market is."""
    stands = next(iter(rentals_of(look)), None)
    owner = Market.SPOT if _owner_at_work(look) is not None else None
    return Seen(now, LAST_SECONDS, owner, None if stands is None else Rental(now))


def see(look: Look, work_left: float, now: float) -> Seen:
    """Return what the policy sees. `work_left` is in seconds of training on demand."""
    rentals = {market: _rental(look, market) for market in Market}
    return Seen(
        now=now,
        work_left=0.0 if is_done(look) else max(work_left, 0.0) + LAST_SECONDS,
        owner=owner_of(look),
        spot=rentals[Market.SPOT],
        on_demand=rentals[Market.ON_DEMAND],
        stale=look.stale,
    )


def is_done(look: Look) -> bool:
    """Return whether the rental has no more to do."""
    return any(each.run.finished for each in look.of_jobs)


def rental_of(look: Look, market: Market) -> JobLook | None:
    """Return the newest live job of that market which is not being cancelled."""
    return next((each for each in rentals_of(look) if _market(each) is market), None)


def rentals_of(look: Look) -> list[JobLook]:
    """Return the live jobs that are not given up, nor being cancelled, the newest first."""
    return [
        each
        for each in look.of_jobs
        if (job := each.sky.job) is not None
        and job.live
        and job.status != "CANCELLING"
        and job.id not in look.given_up
    ]


def owner_of(look: Look) -> Market | None:
    """Return the market of the machine that owns the run; None without owner, or if its machine is
    given up or known to be gone."""
    owner = _owner_at_work(look)
    return None if owner is None else _market(owner)


def _owner_at_work(look: Look) -> JobLook | None:
    owner = _owners_job(look)
    if owner is None or owner.sky.job is None or owner.sky.gone_since is not None:
        return None
    if owner.sky.job.id in look.given_up:
        return None
    if owner.sky.job.status == "FAILED_CONTROLLER":
        alive = tuple(pod.id for pod in owner.sky.pods or () if pod.alive)
        at_work = look.stale or may_be_at_work(owner.run, alive, look.progress.at)
    else:
        at_work = owner.sky.job.status == "RUNNING"
    return owner if at_work else None


def owned_by_another(look: Look, market: Market | None) -> bool:
    """Return whether a machine of another market than this one owns the run."""
    return owner_of(look) not in (None, market)


def owner_outside(look: Look) -> bool:
    """Return whether a process that no job of this rental has started owns the run, and lives."""
    head, status = look.head, look.progress.status
    if head is None or head.owner is None or status is None:
        return False
    if any(launch_id_of(job) == head.owner.launch_id for job in look.jobs):
        return False
    if not status["heartbeats"]:
        return bool(status["last_commit_age"] < COMMIT_SILENCE_SECONDS)
    age = status["heartbeat_age"]
    since = status["last_commit_age"] if age is None else age  # it may not have beaten yet
    return bool(since < SILENCE_SECONDS)


def gpu_of(each: JobLook) -> str | None:
    """Return the GPU of a job's machine; None if SkyPilot has not said."""
    job = each.sky.job
    return place_of(job).gpu if job is not None and job.place else None


def has_machine(each: JobLook) -> bool:
    """Return whether a job has a machine now, which may still be booting."""
    job = each.sky.job
    alive = any(pod.alive for pod in each.sky.pods or ())
    return alive or (job is not None and job.status == "RUNNING" and each.sky.gone_since is None)


def _owners_job(look: Look) -> JobLook | None:
    if look.head is None or look.head.owner is None:
        return None
    launch = look.head.owner.launch_id
    return next((e for e in look.of_jobs if e.sky.job and launch_id_of(e.sky.job) == launch), None)


def _market(each: JobLook) -> Market | None:
    return None if each.sky.job is None else market_of(each.sky.job)


def _rental(look: Look, market: Market) -> Rental | None:
    each = rental_of(look, market)
    if each is None or each.sky.job is None:
        return None
    job, machine = each.sky.job, has_machine(each)
    running = job.recovered_at or job.started_at if job.status == "RUNNING" else None
    since = running or (each.sky.pod_since if machine else None) or job.submitted_at or 0.0
    takes_over = machine and _is_handed_over_to(look, each)
    return Rental(since, machine, is_over_for(look, job), takes_over)


def _is_handed_over_to(look: Look, each: JobLook) -> bool:
    """Return whether others were asked to stop, and this job was not."""
    others = [other for other in look.of_jobs if other is not each]
    return each.run.stop is None and any(other.run.stop is not None for other in others)


def is_over_for(look: Look, job: ManagedJob) -> bool:
    """Return whether a job can no longer serve the run.

    Its machine owned the run until another one took over. Or its machine would relieve an owner
    that another one has relieved, and so would wait for ever.
    """
    claims = look.head.claims if look.head is not None else ()
    launch = launch_id_of(job)
    if not claims or claims[0].owner.launch_id == launch:
        return False
    if any(claim.owner.launch_id == launch for claim in claims):
        return True
    epoch = variable_of(job, FROM_EPOCH)
    if not epoch or look.head is None or look.head.owner is None:
        return False
    relieves = {claim.owner.launch_id for claim in claims if str(claim.epoch) == epoch}
    return claims[0].owner.launch_id not in relieves


def _reached(look: Look) -> Reached | None:
    progress = (look.progress.status or {}).get("progress") or {}
    stage, step = progress.get("stage"), progress.get("step")
    return None if stage is None or step is None else Reached(stage, step)


def _report_age(look: Look) -> float:
    age = (look.progress.status or {}).get("heartbeat_age")
    return max(age or 0.0, 0.0)
