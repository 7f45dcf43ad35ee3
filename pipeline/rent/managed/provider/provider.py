"""All calls of SkyPilot and RunPod that renting needs, in one class that tests can replace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pipeline.rent.managed import rental
from pipeline.rent.managed.provider import jobs, pods, recorded_task
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.recorded_task import NextRental


class Provider:
    """SkyPilot's API server, and RunPod if this machine has a key for it."""

    def start(self, say: Callable[[str], None]) -> None:
        """Start SkyPilot's API server if it does not run yet."""
        jobs.start_api_server(say)

    def managed_jobs(
        self, name: str | None = None, *, with_task: bool = False
    ) -> Sequence[ManagedJob]:
        """Return the managed jobs of that name, or all jobs, the newest first."""
        return jobs.managed_jobs(name, with_task=with_task)

    def submit(self, task: Any, name: str) -> int:
        """Submit a sky.Task as a managed job; return its number."""
        return jobs.submit(task, name)

    def task_of(self, wanted: NextRental) -> Any:
        """Return the task of a managed job again, perhaps on other machines of its launch file."""
        return recorded_task.task_of(wanted)

    def cancel(self, job_ids: Sequence[int]) -> None:
        """Ask SkyPilot to end these managed jobs and their machines."""
        jobs.cancel(job_ids)

    def controller_is_here(self) -> bool:
        """Return whether the controller that recovers preempted jobs runs on this machine."""
        return jobs.controller_is_here()

    def my_hash(self) -> str:
        """Return the hash with which SkyPilot marks machines that are rented from here."""
        return rental.my_hash()

    def list_pods(self, *, of_everybody: bool = False) -> Sequence[Pod] | None:
        """Return the pods that were rented from here, or all pods of the account.

        Return None if this machine has no key for RunPod.
        """
        if not pods.runpod_configured():
            return None
        return pods.list_pods(rented_from=None if of_everybody else self.my_hash())

    def terminate_pod(self, pod_id: str) -> None:
        """End a pod, which ends its bill."""
        pods.terminate_pod(pod_id)

    def clusters_now(self) -> Mapping[str, str] | None:
        """Return the status of every cluster, as its cloud says; None if it can't be found out."""
        return jobs.clusters_now()

    def clusters_recorded(self, names: Collection[str]) -> Mapping[str, str | None]:
        """Return the status of these clusters in SkyPilot's own records."""
        return jobs.clusters_recorded(names)
