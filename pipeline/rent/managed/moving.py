"""Whether a run is in other hands: a process outside of the rental, or `pion hop` that moves it."""

from __future__ import annotations

from pipeline.rent.managed.arrival import ARRIVE_SECONDS
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import BY_HOP, market_of
from pipeline.rent.managed.recorded_task import launch_id_of, variable_of
from pipeline.rent.managed.seen import owner_outside, rentals_of
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS, RunState
from pipeline.state.stores import Store


def why_not(look: Look, state: RunState) -> str | None:
    """Return why nothing may be requested or cancelled for the deadline now; None if it may."""
    if owner_outside(look):
        return (
            "another process owns the run, so nothing is requested or cancelled for the "
            f"deadline. To see that process: pion status {state.url}"
        )
    if (job := moving(look, state.clock.now(), state.store)) is not None:
        return (
            f"the run is being moved to managed job {job.id}, so nothing is requested or "
            f"cancelled for the deadline until then. To call that off: sky jobs cancel {job.id}"
        )
    return None


def moving(look: Look, now: float, store: Store) -> ManagedJob | None:
    """Return the job to whose machine a run is being moved at `now` (Unix seconds); None if it is
    not.

    That is a job of `pion hop` that has not owned the run yet, or the newer one of two that ask the
    same market. A hop that nobody has seen through ends here, too, once its time is over; but two
    rentals of which one asks both markets can't be told apart.
    """
    jobs = [each.sky.job for each in rentals_of(look) if each.sky.job is not None]
    if not jobs:
        return None
    newest, markets = jobs[0], [market_of(job) for job in jobs]
    if len(jobs) > 1 and None in markets:
        return newest
    claims = look.head.claims if look.head is not None else ()
    has_arrived = any(claim.owner.launch_id == launch_id_of(newest) for claim in claims)
    by_hop = bool(variable_of(newest, BY_HOP)) and not has_arrived
    patience = ARRIVE_SECONDS + (COMMIT_SILENCE_SECONDS if store.commits else 0.0)
    recent = now - (newest.submitted_at or now) < patience
    return newest if recent and (by_hop or len(set(markets)) < len(jobs)) else None
