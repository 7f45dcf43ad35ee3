"""Whether a rental with a deadline is over, and which of its jobs says how it ended."""

from __future__ import annotations

from pion.errors import Stopped
from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.diagnose import diagnose
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import market_of
from pipeline.rent.managed.recorded_task import launch_id_of
from pipeline.rent.managed.seen import is_done, owner_of

# After so many failures within so many seconds, a market is left alone for a while.
FAILURES, FORGET_SECONDS = 3, 3600.0
# How a job ends that the watcher has cancelled. With another final status, it ended by itself.
CANCELLED = ("CANCELLED", "FAILED_CONTROLLER")
# How a job ends by itself. SkyPilot says CANCELLED of a job that was ended from outside.
_BY_ITSELF = ("SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE")


def only_job_has_ended(look: Look, now: float, replacing: ManagedJob | None) -> ManagedJob | None:
    """Return the job that is followed if it has ended, and with it a rental without a deadline.

    It has not while its machine may still be at work or must be ended, nor while the watcher
    replaces it: the job `replacing` was cancelled for that.
    """
    job = look.sky.job
    if job is None or job.live:
        return None
    if replacing is not None and job.id == replacing.id and job.status in CANCELLED:
        return None
    findings = diagnose(look.sky, look.run, now)  # of a job without a controller, or none
    goes_on = any(f.action != "note" or f.what == "controller lost" for f in findings)
    return None if goes_on else job


def final_job(look: Look, *, stopped: bool, next_announced: bool) -> ManagedJob | None:
    """Return the job with which the rental has ended; None while it goes on.

    `stopped` is whether a person asked the run to stop, or its budget is spent: then exit code 4 is
    the end, and otherwise a handover. `next_announced` is whether a launch was announced that has
    no job yet: then the watcher itself has cancelled the last job.
    """
    owners = _last_owners_job(look)
    if owners is not None and _is_final(owners, stopped=stopped):
        # A job that was submitted later belongs to a new launch.
        ended = owners.ended_at or look.progress.at
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
    failed = [
        job
        for job in look.jobs
        if job.status in _BY_ITSELF
        and market_of(job) is market
        and launch_id_of(job) not in owners
        and now - (job.ended_at or 0.0) < FORGET_SECONDS
    ]
    return len(failed) >= FAILURES


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
    pods = [pod for each in look.of_jobs if each.sky.job is job for pod in each.sky.pods or ()]
    return owner_of(look) is not None or any(pod.alive for pod in pods)


def _is_final(job: ManagedJob, *, stopped: bool) -> bool:
    if job.status not in _BY_ITSELF:
        return False
    return stopped or job.exit_code != Stopped.exit_code
