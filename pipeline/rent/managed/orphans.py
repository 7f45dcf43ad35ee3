"""Whether a rented machine is needed, gone, or paid for by nobody's wish, and how that is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pion.errors import PionError
from pipeline.rent.managed.launch import owner_age
from pipeline.rent.managed.managed_jobs import ManagedJob, asking_skypilot, controller_is_here
from pipeline.rent.managed.names import cluster_name, my_hash
from pipeline.rent.managed.pods import Pod
from pipeline.state.records import Head
from pipeline.state.run_state import RunState

CLEAN_UP_SECONDS = 300.0
"""In which SkyPilot gives the machine of an ended job back by itself."""


def is_at_work(state: RunState, head: Head | None) -> bool:
    """Whether the run's owner has shown life of late, wherever it is."""
    age = owner_age(state, head)
    return age is not None and age < state.silence


def pod_standing(
    pod: Pod, jobs: Sequence[ManagedJob], now: float, at_work: bool | None
) -> tuple[str, str]:
    """Whether a listed pod is needed by a managed job that lives.

    SkyPilot may have forgotten its jobs, as where `consolidation_mode` was switched; their pods
    train on. `at_work`: whether the run is; None if it is not known which run it is.
    """
    job = next((known for known in jobs if known.id == pod.job_id), None)
    if pod.rented_from != my_hash():
        return "unknown", "rented from another machine; ask there"
    if job is not None and pod.belongs_to(cluster_name(job.name, job.id)):
        if job.live and pod.alive:
            return "running", f"managed job {job.id} is {job.status}"
        if job.live:
            return "ending", f"{pod.status}; managed job {job.id} is {job.status}"
        if job.ended_at is not None and now - job.ended_at < CLEAN_UP_SECONDS:
            return "ending", f"managed job {job.id} {job.status} just now"
        return "orphan", f"{pod.status}, though managed job {job.id} is {job.status}"
    forgotten = f"{pod.status}, and SkyPilot knows no managed job {pod.job_id} of that name"
    if pod.alive and at_work is not False:
        doubt = "the run is at work, there or elsewhere" if at_work else "ask: pion rentals RUN"
        return "unknown", f"{forgotten}; {doubt}"
    return "orphan", forgotten


def clusters_now() -> Mapping[str, str] | None:
    """The status of every cluster, asked of its cloud; None if SkyPilot can't say."""
    try:
        with asking_skypilot("ask the clouds for its machines"):
            from sky.client import sdk
            from sky.utils.common import StatusRefreshMode

            records = sdk.get(sdk.status(refresh=StatusRefreshMode.FORCE, all_users=True))
    except PionError:
        return None
    return {record["name"]: str(record["status"].value) for record in records}


def clusters_recorded(clusters: Collection[str]) -> Mapping[str, str | None]:
    """The status of these clusters in SkyPilot's own records; None for those that have ended.

    Unlike its list, the records have the clusters of managed jobs too, where their controller is on
    this machine. One ends there only when the cloud has been asked and has no machine of it up.
    What was never recorded here is left out.
    """
    if not controller_is_here():
        return {}
    try:
        with asking_skypilot("read its records"):
            from sky import global_user_state

            records = global_user_state.get_clusters_from_history(cluster_names=sorted(clusters))
    except PionError:
        return {}
    found: dict[str, str | None] = {}
    for record in records:  # one for each time that a cluster of the name was made
        status = record["status"]
        found[record["name"]] = str(status.value) if status else found.get(record["name"])
    return found


def cluster_standing(
    event: Mapping[str, Any],
    clusters: Mapping[str, str] | None,
    recorded: Mapping[str, str | None],
    jobs: Sequence[ManagedJob],
    now: float,
    *,
    newest: bool,
) -> tuple[str, str]:
    """Whether a machine outside RunPod is needed by one of these jobs, or known to SkyPilot.

    SkyPilot's list leaves out the clusters of managed jobs, so not to be in it proves nothing; its
    records have them, but by name, which every machine of a job shares while it lives. `newest`: no
    later machine of its job has claimed the run.
    """
    cluster, job_id = str(event.get("cluster")), str(event.get("managed_job"))
    job = next((known for known in jobs if str(known.id) == job_id), None)
    live = job is not None and job.live
    if job is not None and live and newest:
        return "running", f"managed job {job.id} is {job.status}"
    if not live and cluster in recorded:
        status = recorded[cluster]
        if status is None:
            return "gone", f"SkyPilot says that its cluster {cluster} has ended"
        if job is not None and job.ended_at is not None and now - job.ended_at < CLEAN_UP_SECONDS:
            return "ending", f"managed job {job.id} {job.status} just now"
    if clusters is None:
        return "unknown", "its cloud could not be asked"
    if cluster in clusters:
        return "running", f"SkyPilot's cluster {cluster} is {clusters[cluster]}"
    if not live and cluster in recorded:
        return "unknown", f"SkyPilot still has its cluster as {recorded[cluster]}: ask its cloud"
    return "unknown", "SkyPilot does not list it, which it does for no managed job: ask its cloud"
