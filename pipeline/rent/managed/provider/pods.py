"""List and end the pods that RunPod bills. RunPod itself is asked: SkyPilot may be wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pion.errors import PionError
from pipeline.rent.managed.names import POD_NAME, cluster_name

# How RunPod describes a rental: Rented by User: Fri Jul 12 2024 15:14:40 GMT-0400 (…)
_RENTED = re.compile(
    r"Rented by User: \w+ (?P<month>\w+) (?P<day>\d+) (?P<year>\d+) (?P<time>[\d:]+)"
    r" GMT(?P<zone>[+-]\d{4})"
)
_ALIVE = frozenset({"CREATED", "RUNNING", "RESTARTING", "PAUSED"})


@dataclass(frozen=True)
class Pod:
    """A pod in RunPod's list. `status` is RunPod's. `price` is in dollars per hour while it runs.

    `created` (Unix seconds) is when the pod was rented. RunPod only shows it until the pod changes.
    """

    id: str
    name: str
    status: str
    gpu: str | None = None
    price: float | None = None
    count: int = 1
    created: float | None = None

    @property
    def alive(self) -> bool:
        """Whether the pod runs, or is about to. Other listed pods are only billed for disks."""
        return self.status in _ALIVE

    @property
    def job_id(self) -> int | None:
        """The managed job that the pod was rented for; None if its name is not one of ours."""
        found = POD_NAME.fullmatch(self.name)
        return int(found["job"]) if found else None

    @property
    def rented_from(self) -> str | None:
        """The hash of the user whose SkyPilot rented the pod."""
        found = POD_NAME.fullmatch(self.name)
        return found["user"] if found else None

    def belongs_to(self, cluster: str) -> bool:
        """Return whether the pod is a machine of the SkyPilot cluster of that name."""
        return self.name.startswith(f"{cluster}-")

    def is_of(self, rental: str) -> bool:
        """Return whether the pod is a machine of any managed job called `rental`."""
        return self.job_id is not None and self.belongs_to(cluster_name(rental, self.job_id))


def runpod_configured() -> bool:
    """Return whether this machine has a key for RunPod."""
    return bool(os.environ.get("RUNPOD_API_KEY")) or _config_file().is_file()


def list_pods(rented_from: str | None = None) -> list[Pod]:
    """Return every pod of the account, or only the pods that one SkyPilot rented.

    Without `rented_from`, pods of two computers may share a job number and a cluster name. Raises
    PionError if RunPod can't be asked.
    """
    found = ask_runpod("list the pods", lambda runpod: [_pod(pod) for pod in runpod.get_pods()])
    return [pod for pod in found if rented_from is None or pod.rented_from == rented_from]


def ask_runpod(what: str, question: Callable[[Any], Any]) -> Any:
    """Return RunPod's answer to `question`; errors call it `what`. Raises PionError."""
    import runpod
    from requests import RequestException
    from runpod.error import AuthenticationError, QueryError

    try:
        return question(runpod)
    except AuthenticationError:
        raise PionError(
            f"RunPod does not accept this machine's key, so it can't {what}. Put a valid key into "
            f"{_config_file()}: `runpod config`."
        ) from None
    except QueryError as error:  # in RunPod's own words, such as a balance that is too low
        raise PionError(f"RunPod could not {what}: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise PionError(
            f"RunPod could not {what}: its answer can't be read. RunPod may be down, it may refuse "
            "this address, or a proxy may answer in its place. Run the same command again in some "
            f"minutes. ({type(error).__name__}: {error})"
        ) from error
    except RequestException as error:
        raise PionError(f"RunPod could not {what}: {type(error).__name__}: {error}") from error


def _pod(pod: Mapping[str, Any]) -> Pod:
    """Return a pod of RunPod's list. Raises ValueError, LookupError or TypeError if it is none."""
    price = pod.get("costPerHr")
    return Pod(
        id=str(pod["id"]),
        name=str(pod.get("name") or ""),
        status=str(pod.get("desiredStatus") or ""),
        gpu=(pod.get("machine") or {}).get("gpuDisplayName"),
        price=None if price is None else float(price),
        count=int(pod.get("gpuCount") or 0),
        created=_created(str(pod.get("lastStatusChange") or "")),
    )


def _created(change: str) -> float | None:
    """Return when a pod was rented, from RunPod's description of its last change."""
    found = _RENTED.match(change)
    if found is None:
        return None
    try:
        at = "{day} {month} {year} {time} {zone}".format_map(found.groupdict())
        return parsedate_to_datetime(at).timestamp()
    except ValueError:
        return None


def _config_file() -> Path:
    return Path("~/.runpod/config.toml").expanduser()


def terminate_pod(pod_id: str) -> None:
    """End a pod. It is no error if the pod is already gone. Raises PionError."""
    try:
        ask_runpod(f"terminate pod {pod_id}", lambda runpod: runpod.terminate_pod(pod_id))
    except PionError:
        if any(pod.id == pod_id for pod in list_pods()):
            raise
