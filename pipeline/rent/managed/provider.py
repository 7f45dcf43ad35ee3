"""What a watcher asks of SkyPilot and RunPod, and orders from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.rent.managed import managed_jobs as sky
from pipeline.rent.managed import pods as runpod
from pipeline.rent.managed.diagnose import Place
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import my_hash
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.task import make_again


@dataclass(frozen=True)
class Provider:
    """What is asked of SkyPilot and RunPod, and ordered from them.

    `list_pods` gives those rented from here, and is None where RunPod can't be asked; `make_again`
    gives a job's task once more, for any place but those it is given, and `submit` takes it.
    """

    managed_jobs: Callable[[str], Sequence[ManagedJob]]
    list_pods: Callable[[], Sequence[Pod]] | None
    terminate_pod: Callable[[str], None]
    cancel: Callable[[Sequence[int]], None]
    make_again: Callable[[ManagedJob, Collection[Place]], Any]
    submit: Callable[[Any, str], int]

    @classmethod
    def real(cls) -> Provider:
        """SkyPilot's API server, and RunPod if this machine has a key for it."""
        list_pods = partial(runpod.list_pods, rented_from=my_hash())
        return cls(
            managed_jobs=partial(sky.managed_jobs, with_task=True),
            list_pods=list_pods if runpod.runpod_configured() else None,
            terminate_pod=runpod.terminate_pod,
            cancel=sky.cancel,
            make_again=make_again,
            submit=sky.submit,
        )

    def terminate(self, pods: Sequence[str]) -> list[str]:
        """End these pods; what was done."""
        for pod in pods:
            self.terminate_pod(pod)
        return [f"terminated pod {pod}" for pod in pods]
