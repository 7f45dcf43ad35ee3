"""SkyPilot's managed jobs and clusters: submit a job, list all, cancel some."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.rent.skypilot import quiet, sky_module

# Final statuses of a managed job. Its machine has ended, or is being ended.
ENDED = frozenset(
    {
        "SUCCEEDED",
        "CANCELLED",
        "FAILED",
        "FAILED_SETUP",
        "FAILED_PRECHECKS",
        "FAILED_NO_RESOURCE",
        "FAILED_CONTROLLER",
    }
)
_EXIT_CODE = re.compile(r"exit(?:ed with)? (?:exit )?codes? \[?(\d+)")
_FIELDS = (
    "job_id",
    "job_name",
    "task_name",
    "status",
    "submitted_at",
    "start_at",
    "last_recovered_at",
    "end_at",
    "recovery_count",
    "failure_reason",
    "cloud",
    "region",
    "cluster_resources",
    "current_cluster_name",
    "schedule_state",
)


@dataclass(frozen=True)
class ManagedJob:
    """What SkyPilot says about a managed job. Times are Unix seconds, None if not reached yet.

    `resources` describes the machine, `1x(A40:1, …)`. `recovered_at` is when the job last began to
    run after a recovery. `task` is the YAML that was submitted, without secrets, if requested.
    """

    id: int
    name: str
    status: str
    submitted_at: float | None = None
    started_at: float | None = None
    recovered_at: float | None = None
    ended_at: float | None = None
    recoveries: int = 0
    cloud: str | None = None
    region: str | None = None
    resources: str | None = None
    failure: str | None = None
    task: str | None = None

    @property
    def live(self) -> bool:
        """Whether the job has, or will have, a machine."""
        return self.status not in ENDED

    @property
    def exit_code(self) -> int | None:
        """The exit code of the task; None if SkyPilot does not say."""
        if self.status == "SUCCEEDED":
            return 0
        found = _EXIT_CODE.search(self.failure or "")
        return int(found.group(1)) if found else None

    @property
    def place(self) -> str:
        """`RunPod CA, 1x(A40:1, …)`; empty before the job has a machine."""
        where = " ".join(filter(None, (self.cloud, self.region)))
        return ", ".join(filter(None, (where, self.resources)))


def managed_jobs(name: str | None = None, *, with_task: bool = False) -> list[ManagedJob]:
    """Return every managed job that SkyPilot knows, or those called `name`, the newest first.

    Raises PionError if SkyPilot can't be asked.
    """
    with asking_skypilot("list the managed jobs"):
        from sky import exceptions
        from sky.client import sdk
        from sky.jobs.client import sdk as jobs

        fields = [*_FIELDS, "user_yaml"] if with_task else list(_FIELDS)
        try:
            records, *_ = sdk.get(jobs.queue_v2(refresh=False, fields=fields, name_match=name))
        except exceptions.ClusterNotUpError as error:
            status = getattr(error.cluster_status, "value", error.cluster_status)
            if status in (None, "STOPPED"):
                return []  # no controller was ever needed, or it has nothing left to do
            raise PionError(
                f"SkyPilot's jobs controller is {status}. Pion can't reach it, so Pion can't list "
                f"the managed jobs ({_first_line(error)}). Nothing was changed. To check the "
                "controller, run: sky status"
            ) from error
    found = [_managed_job(record) for record in records]
    return sorted(
        (job for job in found if name is None or job.name == name), key=lambda job: -job.id
    )


def submit(task: Any, name: str) -> int:
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
                f"({_first_line(error)})."
            ) from error
    if not ids:
        raise PionError(
            f"SkyPilot accepted {name} but gave no job number. To find the job, run: sky jobs queue"
        )
    return int(ids[0] if isinstance(ids, Sequence) else ids)


def _refused(name: str, error: Exception) -> BadInput:
    return BadInput(
        f"SkyPilot rejected {name}: {type(error).__name__}: {_first_line(error)}. Nothing was "
        "rented."
    )


def cancel(job_ids: Sequence[int]) -> None:
    """Ask SkyPilot to end these managed jobs and their machines."""
    with asking_skypilot("cancel the managed job"):
        from sky.client import sdk
        from sky.jobs.client import sdk as jobs

        sdk.get(jobs.cancel(job_ids=list(job_ids)))


def start_api_server(say: Callable[[str], None]) -> None:
    """Start SkyPilot's API server unless it already runs. The start takes 20 s."""
    sky_module()
    from sky.server import common

    try:
        common.check_server_healthy()
    except Exception:  # not running, or a problem that the next call reports
        if common.is_api_server_local():
            say("Starting SkyPilot's API server on this machine takes about 20 s.")
    with asking_skypilot("start its API server"):
        common.check_server_healthy_or_start_fn()


def controller_is_here() -> bool:
    """Return whether the controller that recovers preempted jobs runs on this machine."""
    sky_module()
    from sky import skypilot_config
    from sky.server import common

    consolidated = skypilot_config.get_nested(("jobs", "controller", "consolidation_mode"), False)
    return bool(consolidated) and common.is_api_server_local()


@contextlib.contextmanager
def asking_skypilot(what: str) -> Iterator[None]:
    """Turn SkyPilot's errors into messages for the user, and hide what SkyPilot prints."""
    sky_module()
    from sky import exceptions

    try:
        with quiet():
            yield
    except PionError:
        raise
    except exceptions.ApiServerConnectionError as error:
        raise BadInput(
            f"SkyPilot's API server does not answer, so Pion can't {what} ({_first_line(error)}). "
            "Start the server: `sky api start`. If the server does not start, the reason is in "
            "~/.sky/api_server/server.log."
        ) from error
    except exceptions.NoCloudAccessError as error:
        raise BadInput(
            f"SkyPilot has no credentials for any suitable cloud ({_first_line(error)}). "
            "`sky check` says what each cloud lacks."
        ) from error
    except Exception as error:  # SkyPilot raises many kinds
        raise PionError(
            f"SkyPilot could not {what}: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:400]


def _managed_job(record: Mapping[str, Any]) -> ManagedJob:
    def known(key: str) -> Any:
        value = record.get(key)
        return None if value in ("", "-", 0) else value

    status = record.get("status")
    return ManagedJob(
        id=int(record.get("job_id") or 0),
        name=str(record.get("job_name") or record.get("task_name")),
        status=str(getattr(status, "value", status)),
        submitted_at=known("submitted_at"),
        started_at=known("start_at"),
        recovered_at=_positive(known("last_recovered_at")),
        ended_at=known("end_at"),
        recoveries=int(record.get("recovery_count") or 0),
        cloud=known("cloud"),
        region=known("region"),
        resources=known("cluster_resources"),
        failure=known("failure_reason"),
        task=known("user_yaml"),
    )


def _positive(at: float | None) -> float | None:
    """Return a time, or None for the -1 that SkyPilot writes before the time has come."""
    return at if at is not None and at > 0 else None


@dataclass(frozen=True)
class Place:
    """A cloud, one of its regions, a GPU, and whether it is rented as spot."""

    cloud: str | None
    region: str | None
    gpu: str | None
    spot: bool

    def __str__(self) -> str:
        machine = f"{self.gpu or 'CPU'} {'spot' if self.spot else 'on demand'}"
        return f"{machine} on {'/'.join(filter(None, (self.cloud, self.region))) or 'any cloud'}"


def place_of(job: ManagedJob) -> Place:
    """Return the place of a managed job's machine, from text such as `[spot](A40:1, cpus=9)`."""
    words = job.resources or ""
    gpu = re.search(r"([A-Za-z][\w-]*):\d", words)
    return Place(job.cloud, job.region, gpu.group(1) if gpu else None, "[spot]" in words.lower())


def clusters_now() -> Mapping[str, str] | None:
    """Ask the clouds for the status of every cluster. Return None if SkyPilot can't do this."""
    try:
        with asking_skypilot("ask the clouds for its machines"):
            from sky.client import sdk
            from sky.utils.common import StatusRefreshMode

            records = sdk.get(sdk.status(refresh=StatusRefreshMode.FORCE, all_users=True))
    except PionError:
        return None
    return {record["name"]: str(record["status"].value) for record in records}


def clusters_recorded(clusters: Collection[str]) -> Mapping[str, str | None]:
    """Return the status of these clusters in SkyPilot's records; None for an ended cluster.

    Unlike SkyPilot's list, the records include the clusters of managed jobs, if their controller
    runs on this machine. The records show the end of a cluster only after the cloud has confirmed
    that none of its machines is up. A cluster that was never recorded here is left out.
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
    for record in records:  # one for each cluster that ever had the name
        status = record["status"]
        found[record["name"]] = str(status.value) if status else found.get(record["name"])
    return found
