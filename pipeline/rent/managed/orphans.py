"""Judge whether a rented machine is needed, gone, or an orphan (billed although not needed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import Pod

# SkyPilot ends the machine of an ended job within this time.
CLEAN_UP_SECONDS = 300.0


class Verdict(NamedTuple):
    """`running`, `ending`, `gone`, `orphan` or `unknown`, and how that is known."""

    state: str
    words: str


@dataclass(frozen=True)
class Evidence:
    """What is known when machines are judged.

    Attributes:
        now: Unix seconds.
        jobs: the managed jobs that SkyPilot knows.
        my_hash: the hash with which SkyPilot marks machines that are rented from here.
        at_work: whether the run's owner has shown life recently; None if the run is not known.
        clusters: the status of SkyPilot's clusters, as their clouds say; None if the clouds can't
            be asked. Clusters of managed jobs are not included.
        recorded: the status of clusters in SkyPilot's records, None for an ended cluster. Clusters
            of managed jobs are included, but all machines of a job share one name.
    """

    now: float
    jobs: Sequence[ManagedJob]
    my_hash: str
    at_work: bool | None
    clusters: Mapping[str, str] | None = None
    recorded: Mapping[str, str | None] = field(default_factory=dict)

    def has_just_ended(self, job: ManagedJob) -> bool:
        """Return whether SkyPilot may still be ending the job's machine."""
        return job.ended_at is not None and self.now - job.ended_at < CLEAN_UP_SECONDS


def judge_pod(pod: Pod, evidence: Evidence) -> Verdict:
    """Judge a pod that RunPod lists.

    SkyPilot may have forgotten the pod's job, for example because `consolidation_mode` was changed.
    Such a pod continues to train.
    """
    job = next((known for known in evidence.jobs if known.id == pod.job_id), None)
    if pod.rented_from != evidence.my_hash:
        return Verdict("unknown", "rented from another machine; check there")
    if job is not None and pod.belongs_to(cluster_name(job.name, job.id)):
        if job.live and pod.alive:
            return Verdict("running", f"managed job {job.id} is {job.status}")
        if job.live:
            return Verdict("ending", f"{pod.status}; managed job {job.id} is {job.status}")
        if evidence.has_just_ended(job):
            return Verdict("ending", f"managed job {job.id} has just stopped ({job.status})")
        return Verdict("orphan", f"{pod.status}, although managed job {job.id} is {job.status}")
    forgotten = f"{pod.status}, and SkyPilot lists no managed job {pod.job_id} with that name"
    if pod.alive and evidence.at_work is not False:
        at_work = "The run is running, on this machine or another machine"
        doubt = at_work if evidence.at_work else "To find out, run: pion rentals RUN"
        return Verdict("unknown", f"{forgotten}. {doubt}")
    return Verdict("orphan", forgotten)


def judge_cluster(event: Mapping[str, Any], evidence: Evidence, *, newest: bool) -> Verdict:
    """Judge a machine of a cloud other than RunPod, from its event in the run's store.

    `newest`: no later machine of the same job has claimed the run.
    """
    cluster, job_id = str(event.get("cluster")), str(event.get("managed_job"))
    job = next((known for known in evidence.jobs if str(known.id) == job_id), None)
    live = job is not None and job.live
    if job is not None and live and newest:
        return Verdict("running", f"managed job {job.id} is {job.status}")
    recorded = not live and cluster in evidence.recorded
    if recorded and evidence.recorded[cluster] is None:
        return Verdict("gone", f"SkyPilot says that the cluster {cluster} was terminated")
    if recorded and job is not None and evidence.has_just_ended(job):
        return Verdict("ending", f"managed job {job.id} has just stopped ({job.status})")
    if evidence.clusters is None:
        return Verdict("unknown", "its cloud could not be asked")
    if cluster in evidence.clusters:
        now = evidence.clusters[cluster]
        return Verdict("running", f"SkyPilot's cluster {cluster} is {now}")
    words = "SkyPilot does not list machines of managed jobs"
    if recorded:
        words = f"SkyPilot still records its cluster as {evidence.recorded[cluster]}"
    return Verdict("unknown", f"{words}; check in the cloud")
