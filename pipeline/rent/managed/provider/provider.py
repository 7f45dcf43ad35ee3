"""All calls of SkyPilot and RunPod that renting needs, in one class that tests can replace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.rent.managed.provider import pods, recorded_task
from pipeline.rent.managed.provider.jobs import (
    FIELDS,
    ManagedJob,
    asking_skypilot,
    first_line,
    managed_job,
)
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.recorded_task import NextRental
from pipeline.rent.skypilot import sky_module
from pipeline.state.stores.clock import Clock

POLL_SECONDS = 5.0


class Provider:
    """SkyPilot's API server, and RunPod if this machine has a key for it."""

    def start(self, say: Callable[[str], None]) -> None:
        """Start SkyPilot's API server unless it already runs. The start takes 20 s."""
        sky_module()
        from sky.server import common

        try:
            common.check_server_healthy()
        except Exception:  # not running, or a problem that the next call reports
            if common.is_api_server_local():
                say(
                    "Starting SkyPilot's API server on this machine takes about 20 s. Without "
                    "SkyPilot, `pion status RUN` says what the run's store knows."
                )
        with asking_skypilot("start its API server"):
            common.check_server_healthy_or_start_fn()

    def managed_jobs(
        self, name: str | None = None, *, with_task: bool = False
    ) -> Sequence[ManagedJob]:
        """Return every managed job that SkyPilot knows, or those called `name`, the newest first.

        Raises PionError if SkyPilot can't be asked.
        """
        with asking_skypilot("list the managed jobs"):
            from sky import exceptions
            from sky.client import sdk
            from sky.jobs.client import sdk as jobs

            fields = [*FIELDS, "user_yaml"] if with_task else list(FIELDS)
            try:
                records, *_ = sdk.get(jobs.queue_v2(refresh=False, fields=fields, name_match=name))
            except exceptions.ClusterNotUpError as error:
                status = getattr(error.cluster_status, "value", error.cluster_status)
                if status in (None, "STOPPED"):
                    return []  # no controller was ever needed, or it has nothing left to do
                raise PionError(
                    f"SkyPilot's jobs controller is {status}. Pion can't reach it, so Pion can't "
                    f"list the managed jobs ({first_line(error)}). Nothing was changed. To check "
                    "the controller, run: sky status"
                ) from error
        found = [managed_job(record) for record in records]
        return sorted(
            (job for job in found if name is None or job.name == name), key=lambda job: -job.id
        )

    def task_of(self, wanted: NextRental) -> Any:
        """Return the task of a managed job again, perhaps on other machines of its launch file."""
        return recorded_task.task_of(wanted)

    def submit(self, task: Any, name: str) -> int:
        """Submit a sky.Task as a managed job and return its number.

        Raises BadInput if SkyPilot refuses it, and PionError if SkyPilot may have accepted it.
        """
        with asking_skypilot("submit the managed job"):
            from sky import exceptions
            from sky.client import sdk
            from sky.jobs.client import sdk as jobs

            try:
                request = jobs.launch(task, name=name)
            except (exceptions.ApiServerConnectionError, exceptions.NoCloudAccessError):
                raise
            except Exception as error:  # many kinds: the task, its files, or SkyPilot's limits
                raise _refused(name, error) from error
            try:
                ids, _ = sdk.get(request)
            except (exceptions.ResourcesUnavailableError, ValueError) as error:
                raise _refused(name, error) from error
            except exceptions.ApiServerConnectionError as error:
                raise PionError(
                    f"SkyPilot's API server accepted {name}, and then did not answer any more "
                    f"({first_line(error)})."
                ) from error
        if not ids:
            raise PionError(
                f"SkyPilot accepted {name} but gave no job number. To find the job, run: sky jobs "
                "queue"
            )
        return int(ids[0] if isinstance(ids, Sequence) else ids)

    def cancel(self, job_ids: Sequence[int]) -> None:
        """Ask SkyPilot to end these managed jobs and their machines."""
        with asking_skypilot("cancel the managed job"):
            from sky.client import sdk
            from sky.jobs.client import sdk as jobs

            sdk.get(jobs.cancel(job_ids=list(job_ids)))

    def wait_for_end(
        self, name: str, job_ids: Collection[int], clock: Clock, seconds: float
    ) -> Sequence[ManagedJob]:
        """Wait up to so many seconds until these jobs of the rental `name` have ended; return what
        SkyPilot then says of them."""
        now: list[ManagedJob] = []

        def have_ended() -> bool:
            now[:] = [job for job in self.managed_jobs(name) if job.id in job_ids]
            return not any(job.live for job in now)

        clock.until(have_ended, seconds, POLL_SECONDS)
        return now

    def controller_is_here(self) -> bool:
        """Return whether the controller that recovers preempted jobs runs on this machine."""
        sky_module()
        from sky import skypilot_config
        from sky.server import common

        key = ("jobs", "controller", "consolidation_mode")
        return bool(skypilot_config.get_nested(key, False)) and common.is_api_server_local()

    def my_hash(self) -> str:
        """Return the hash with which SkyPilot marks machines that are rented from here."""
        sky_module()
        from sky.utils import common_utils

        return common_utils.get_user_hash()

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

    def end_pods(self, pod_ids: Collection[str]) -> dict[str, str]:
        """End each of these pods. Of those that can't be ended, return why."""
        failed: dict[str, str] = {}
        for pod_id in pod_ids:
            try:
                self.terminate_pod(pod_id)
            except PionError as error:
                failed[pod_id] = str(error)
        return failed

    def clusters_now(self) -> Mapping[str, str] | None:
        """Ask the clouds for the status of every cluster. Return None if SkyPilot can't do this."""
        try:
            with asking_skypilot("ask the clouds for its machines"):
                from sky.client import sdk
                from sky.utils.common import StatusRefreshMode

                records = sdk.get(sdk.status(refresh=StatusRefreshMode.FORCE, all_users=True))
        except PionError:
            return None
        return {record["name"]: str(record["status"].value) for record in records}

    def clusters_recorded(self, names: Collection[str]) -> Mapping[str, str | None]:
        """Return the status of these clusters in SkyPilot's records; None for an ended cluster.

        Unlike SkyPilot's list, the records include the clusters of managed jobs, if their
        controller runs on this machine. The records show the end of a cluster only after the cloud
        has confirmed that none of its machines is up. A cluster that was never recorded here is
        left out.
        """
        if not self.controller_is_here():
            return {}
        try:
            with asking_skypilot("read its records"):
                from sky import global_user_state

                records = global_user_state.get_clusters_from_history(cluster_names=sorted(names))
        except PionError:
            return {}
        found: dict[str, str | None] = {}
        for record in records:  # one for each cluster that ever had the name
            status = record["status"]
            found[record["name"]] = str(status.value) if status else found.get(record["name"])
        return found


def _refused(name: str, error: Exception) -> BadInput:
    return BadInput(
        f"SkyPilot rejected {name}: {type(error).__name__}: {first_line(error)}. Nothing was "
        "rented."
    )
