"""What a look at a rental says: which jobs stand, who owns the run, and whether the rental is over.

Nothing here asks or changes anything, or reads a clock.
"""

from __future__ import annotations

from pion.errors import Stopped
from pipeline.rent.deadline.policy import Market, Rental, Seen
from pipeline.rent.managed.look.diagnose import diagnose, may_be_at_work
from pipeline.rent.managed.look.look import JobLook, Look
from pipeline.rent.managed.provider.jobs import ManagedJob, arrive_seconds
from pipeline.rent.managed.provider.recorded_task import (
    BY_HOP,
    launch_id_of,
    market_of,
    variable_of,
)
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.liveness import liveness
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store

# From the end of training to the end of the run: evaluation and publishing. Assumed; the margin is
# for the rest.
LAST_SECONDS = 60.0


def see_any(look: Look, now: float) -> Seen:
    """Return what the policy sees without a deadline: one rental, whatever its market is."""
    stands = any(not is_over_for(look, each.job) for each in rentals_of(look))
    owner = Market.SPOT if _owner_at_work(look) is not None else None
    return Seen(now, LAST_SECONDS, owner, Rental(now) if stands else None)


def see(look: Look, work_left: float, now: float) -> Seen:
    """Return what the policy sees. `work_left` is in seconds of training on demand."""
    return Seen(
        now=now,
        work_left=0.0 if is_done(look) else max(work_left, 0.0) + LAST_SECONDS,
        owner=owner_of(look),
        spot=_rental(look, Market.SPOT),
        on_demand=_rental(look, Market.ON_DEMAND),
        stale=look.stale,
    )


def is_done(look: Look) -> bool:
    """Return whether the rental has no more to do."""
    return any(each.run.finished for each in look.of_jobs)


def rental_of(look: Look, market: Market) -> JobLook | None:
    """Return the newest live job of that market which is not being cancelled."""
    return next((each for each in rentals_of(look) if market_of(each.job) is market), None)


def rentals_of(look: Look) -> list[JobLook]:
    """Return the live jobs that are not given up, nor being cancelled, the newest first."""
    return [
        each
        for each in look.of_jobs
        if each.job.live and each.job.status != "CANCELLING" and each.job.id not in look.given_up
    ]


def owner_of(look: Look) -> Market | None:
    """Return the market of the machine that owns the run; None without owner, or if its machine is
    given up or known to be gone."""
    owner = _owner_at_work(look)
    return None if owner is None else market_of(owner.job)


def _owner_at_work(look: Look) -> JobLook | None:
    if look.head is None or look.head.owner is None:
        return None
    launch = look.head.owner.launch_id
    owner = next((each for each in look.of_jobs if launch_id_of(each.job) == launch), None)
    if owner is None or owner.sky.gone_since is not None or owner.job.id in look.given_up:
        return None
    at_work = owner.job.status == "RUNNING"
    if owner.job.status == "FAILED_CONTROLLER":
        alive = tuple(pod.id for pod in owner.sky.pods or () if pod.alive)
        at_work = look.stale or may_be_at_work(owner.run, alive, look.at)
    return owner if at_work else None


def owner_outside(look: Look, run: RunState) -> bool:
    """Return whether a process that no job of this rental has started owns the run, and lives."""
    head, status = look.head, look.status
    if head is None or head.owner is None or status is None:
        return False
    if any(launch_id_of(job) == head.owner.launch_id for job in look.jobs):
        return False
    age = status["heartbeat_age"]
    beat_at = None if age is None else look.at - age
    return liveness(head, beat_at, look.at, run.silence).life == "alive"


def has_machine(each: JobLook) -> bool:
    """Return whether a job has a machine now, which may still be booting."""
    alive = any(pod.alive for pod in each.sky.pods or ())
    return alive or (each.job.status == "RUNNING" and each.sky.gone_since is None)


def _rental(look: Look, market: Market) -> Rental | None:
    each = rental_of(look, market)
    if each is None:
        return None
    job, machine = each.job, has_machine(each)
    running = job.recovered_at or job.started_at if job.status == "RUNNING" else None
    since = running or (each.sky.pod_since if machine else None) or job.submitted_at or 0.0
    # Others were asked to stop, and this job was not.
    is_stopped = any(other.run.stop is not None for other in look.of_jobs)
    handed_over = is_stopped and each.run.stop is None
    return Rental(since, machine, is_over_for(look, job), takes_over=machine and handed_over)


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


# After so many failures within so many seconds, a market is left alone for a while.
FAILURES, FORGET_SECONDS = 3, 3600.0
# How a job ends that the watcher has cancelled. With another final status, it ended by itself.
CANCELLED = ("CANCELLED", "FAILED_CONTROLLER")
# How a job ends by itself. SkyPilot says CANCELLED of a job that was ended from outside.
_BY_ITSELF = ("SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE")


def only_job_has_ended(look: Look, replacing: ManagedJob | None) -> ManagedJob | None:
    """Return the job that is followed if it has ended, and with it a rental without a deadline.

    It has not while its machine may still be at work or must be ended, nor while the watcher
    replaces it: the job `replacing` was cancelled for that.
    """
    job = look.followed.job
    if job.live:
        return None
    if replacing is not None and job.id == replacing.id and job.status in CANCELLED:
        return None
    # Of a job without a controller, or none.
    findings = diagnose(look.followed.sky, look.followed.run, look.at)
    goes_on = any(f.action != "note" or f.what == "controller lost" for f in findings)
    return None if goes_on else job


def final_job(look: Look, *, stopped: bool, next_announced: bool) -> ManagedJob | None:
    """Return the job with which the rental has ended; None while it goes on.

    `stopped` is whether a person asked the run to stop, or its budget is spent: then exit code 4 is
    the end, and otherwise a handover. `next_announced` is whether a launch was announced that has
    no job yet: then the watcher itself has cancelled the last job.
    """
    owners = _last_owners_job(look)
    if (
        owners is not None
        and owners.status in _BY_ITSELF
        and (stopped or owners.exit_code != Stopped.exit_code)
    ):
        # A job that was submitted later belongs to a new launch.
        ended = owners.ended_at or look.at
        later = [job for job in look.jobs if job.live and (job.submitted_at or 0.0) > ended]
        return None if later else owners
    if any(job.live for job in look.jobs) or not look.jobs:
        return None
    last = look.jobs[0]
    if owners is not None and _served_with(owners, last, look):
        last = owners
    if last.status == "CANCELLED":
        return None if next_announced and not stopped else last
    if last.status == "FAILED_CONTROLLER":
        return last if (stopped or is_done(look)) and not _leaves_machine(last, look) else None
    return None if last is owners else last


def fails_to_start(look: Look, market: Market, now: float) -> bool:
    """Return whether the machines of a market can't start the run: FAILURES jobs have ended by
    themselves within the last hour, and never owned it."""
    claims = look.head.claims if look.head is not None else ()
    owners = {claim.owner.launch_id for claim in claims}
    failed = sum(
        job.status in _BY_ITSELF
        and market_of(job) is market
        and launch_id_of(job) not in owners
        and now - (job.ended_at or 0.0) < FORGET_SECONDS
        for job in look.jobs
    )
    return failed >= FAILURES


def _last_owners_job(look: Look) -> ManagedJob | None:
    """Return the job whose machine was the last to claim the run."""
    if look.head is None or not look.head.claims:
        return None
    launch = look.head.claims[0].owner.launch_id
    return next((job for job in look.jobs if launch and launch_id_of(job) == launch), None)


def _served_with(owners: ManagedJob, newest: ManagedJob, look: Look) -> bool:
    """Return whether the newest job stood next to that of the last owner, for the same launch of a
    person. The owner's job then says how the rental ended: the watcher may have cancelled the
    newest one."""
    if owners.status == "FAILED_CONTROLLER":
        return look.head is not None and look.head.owner is not None
    return (owners.ended_at or 0.0) >= (newest.submitted_at or 0.0)


def _leaves_machine(job: ManagedJob, look: Look) -> bool:
    """Return whether a job's machine may still be at work, or is still up."""
    pods = [pod for each in look.of_jobs if each.job is job for pod in each.sky.pods or ()]
    return owner_of(look) is not None or any(pod.alive for pod in pods)


def why_not(look: Look, run: RunState) -> str | None:
    """Return why nothing may be requested or cancelled for the deadline; None if it may."""
    if owner_outside(look, run):
        return (
            "another process owns the run, so nothing is requested or cancelled for the "
            f"deadline. To see that process: pion status {run.url}"
        )
    if (job := moving(look, run.store)) is not None:
        return (
            f"the run is being moved to managed job {job.id}, so nothing is requested or "
            f"cancelled for the deadline until then. To call that off: sky jobs cancel {job.id}"
        )
    return None


def moving(look: Look, store: Store) -> ManagedJob | None:
    """Return the job to whose machine a run is being moved; None if it is not.

    That is a job of `pion hop` that has not owned the run yet, or the newer one of two that ask the
    same market. A hop that nobody has seen through ends here, too, once its time is over; but two
    rentals of which one asks both markets can't be told apart.
    """
    jobs = [each.job for each in rentals_of(look)]
    if not jobs:
        return None
    newest, markets = jobs[0], [market_of(job) for job in jobs]
    if len(jobs) > 1 and None in markets:
        return newest
    claims, now = look.head.claims if look.head is not None else (), look.at
    has_arrived = any(claim.owner.launch_id == launch_id_of(newest) for claim in claims)
    by_hop = bool(variable_of(newest, BY_HOP)) and not has_arrived
    recent = now - (newest.submitted_at or now) < arrive_seconds(store)
    return newest if recent and (by_hop or len(set(markets)) < len(jobs)) else None
