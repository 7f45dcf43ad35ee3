"""End the rentals that a hop has replaced, and say which machines are left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pion.errors import PionError
from pipeline.rent.managed.arrival import POLL_SECONDS, Move
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import cluster_name

# SkyPilot notices within this time that the old job has ended, and ends its machine.
SAVE_SECONDS = 120.0


def end_old(move: Move) -> Iterator[str]:
    """Wait for the old rentals to end, or cancel them; yield what was done, in words."""
    still = _wait_until_ended(move, [job.id for job in move.old])
    if still:
        move.provider.cancel(still)
        jobs = ", ".join(map(str, still))
        yield f"cancelled managed job {jobs}, because it had not stopped by itself"
        still = _wait_until_ended(move, still)
    for job in move.old:
        if job.id in still:
            yield (
                f"managed job {job.id} has not stopped yet. To terminate its machine, run: "
                "pion rentals --reap"
            )
        else:
            yield f"managed job {job.id} has stopped{_end_pods(move, job)}"


def others_left(move: Move) -> Iterator[str]:
    """Yield a line for each machine that another computer rented for the run and must end."""
    try:
        listed = move.provider.list_pods(of_everybody=True)
    except PionError:
        return
    me = move.provider.my_hash() if listed else ""
    for pod in listed or ():
        if pod.job_id is None or pod.rented_from == me:
            continue
        if pod.alive and pod.belongs_to(cluster_name(move.name, pod.job_id)):
            yield (
                f"pod {pod.id} was rented from another computer. The SkyPilot there will end it, "
                "because its work was handed over. If that computer is asleep or lost, end the pod "
                "yourself in RunPod's console: https://console.runpod.io/pods"
            )


def _wait_until_ended(move: Move, job_ids: Sequence[int]) -> list[int]:
    """Wait up to SAVE_SECONDS for these jobs to end; return the jobs that have not."""
    clock = move.state.clock
    end = clock.monotonic() + SAVE_SECONDS
    while True:
        jobs = move.provider.managed_jobs(move.name)
        left = [job.id for job in jobs if job.live and job.id in job_ids]
        if not left or clock.monotonic() >= end:
            return left
        clock.sleep(POLL_SECONDS)


def _end_pods(move: Move, job: ManagedJob) -> str:
    """End the pods that a job has left behind; return the end of a sentence about them."""
    if (job.cloud or "RunPod").lower() != "runpod":
        return ""
    try:
        ours = move.provider.list_pods()
        if ours is None:
            return ""
        left = [pod.id for pod in ours if pod.belongs_to(cluster_name(move.name, job.id))]
    except PionError as error:
        return f", but Pion can't tell whether its pod is gone ({error})"
    for pod in left:
        move.provider.terminate_pod(pod)
    return f", and its pod {', '.join(left)} was terminated" if left else ", and its pod is gone"
