"""What SkyPilot says: its managed jobs, where their machines are, and its errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.rent.skypilot import quiet, sky_module
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS
from pipeline.state.stores import Store

# From the request for a machine until it has claimed the run. Pulling a 10 GB image and installing
# packages take minutes; a host that needs longer only wastes money. On a store where only commits
# are a sign of life, a machine that is up may wait COMMIT_SILENCE_SECONDS more to take over.
BOOT_SECONDS = 1200.0
# Seconds that a new machine gets, from the request until it owns the run (see `arrive_seconds`).
ARRIVE_SECONDS = 1800.0
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
FIELDS = (
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


def arrive_seconds(store: Store) -> float:
    """Return the seconds that a new machine gets, from the request until it owns the run.

    On a store where only commits are a sign of life, it may wait longer for a silent owner.
    """
    return ARRIVE_SECONDS + (COMMIT_SILENCE_SECONDS if store.commits else 0.0)


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
    def may_be_on_runpod(self) -> bool:
        """Whether the job's machine is on RunPod; True, too, before the job has a machine."""
        return (self.cloud or "RunPod").lower() == "runpod"

    @property
    def place(self) -> str:
        """`RunPod CA, 1x(A40:1, …)`; empty before the job has a machine."""
        where = " ".join(filter(None, (self.cloud, self.region)))
        return ", ".join(filter(None, (where, self.resources)))


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
            f"SkyPilot's API server does not answer, so Pion can't {what} ({first_line(error)}). "
            "Start the server: `sky api start`. If the server does not start, the reason is in "
            "~/.sky/api_server/server.log."
        ) from error
    except exceptions.NoCloudAccessError as error:
        raise BadInput(
            f"SkyPilot has no credentials for any suitable cloud ({first_line(error)}). "
            "`sky check` says what each cloud lacks."
        ) from error
    except Exception as error:  # SkyPilot raises many kinds
        raise PionError(
            f"SkyPilot could not {what}: {type(error).__name__}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, as far as it is short."""
    return str(error).strip().partition("\n")[0][:400]


def managed_job(record: Mapping[str, Any]) -> ManagedJob:
    """Return a job from SkyPilot's record of it, which has the FIELDS."""

    def known(key: str) -> Any:
        value = record.get(key)
        return None if value in ("", "-", 0) else value

    status = record.get("status")
    recovered_at = known("last_recovered_at")  # -1 before the first recovery
    return ManagedJob(
        id=int(record.get("job_id") or 0),
        name=str(record.get("job_name") or record.get("task_name")),
        status=str(getattr(status, "value", status)),
        submitted_at=known("submitted_at"),
        started_at=known("start_at"),
        recovered_at=recovered_at if recovered_at and recovered_at > 0 else None,
        ended_at=known("end_at"),
        recoveries=int(record.get("recovery_count") or 0),
        cloud=known("cloud"),
        region=known("region"),
        resources=known("cluster_resources"),
        failure=known("failure_reason"),
        task=known("user_yaml"),
    )


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
