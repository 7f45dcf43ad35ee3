"""Record the cost of pods that end before they claim the run, in the run's events.

Once RunPod has forgotten a pod, this event is the only record of its cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

from pion.errors import PionError
from pipeline.cost.costs import LostMachine, keep_lost, owners_of
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.pods import Pod
from pipeline.state.metrics import read_events
from pipeline.state.run_state import RunState


class LostPods:
    """The pods that any managed job called `rental` has rented for a run."""

    def __init__(self, state: RunState, rental: str) -> None:
        self._state, self._rental = state, rental
        # A pod in here is lost unless it claims the run before it ends.
        self._not_ended: dict[str, LostMachine] = {}
        # Pods that have ended, and whose cost is in the store.
        self._noted: set[str] = set()

    @property
    def booting(self) -> Collection[LostMachine]:
        """Pods that have not ended, or whose end is not in the store yet."""
        return self._not_ended.values()

    def note(self, job: ManagedJob | None, pods: Sequence[Pod], now: float) -> None:
        """Record each pod that never claimed the run, once the pod or its job has ended.

        If the store is down, try again at the next look.
        """
        alive = set()
        for pod in pods:
            if pod.id in self._noted or not self._is_ours(pod):
                continue
            if pod.alive:
                alive.add(pod.id)
            seen = self._not_ended.get(pod.id)
            if seen is None or pod.alive:
                self._not_ended[pod.id] = _as_lost(pod, seen, now)
        # If the job has ended, this may be the last look.
        job_ended = job is not None and not job.live
        ended = [pod for pod in self._not_ended.values() if job_ended or pod.id not in alive]
        if not ended:
            return
        with contextlib.suppress(PionError):
            owners = owners_of(read_events(self._state.store, self._state.name))
            for machine in ended:
                if machine.id not in owners:
                    keep_lost(self._state, machine)
                del self._not_ended[machine.id]
                self._noted.add(machine.id)

    def _is_ours(self, pod: Pod) -> bool:
        return pod.job_id is not None and pod.belongs_to(cluster_name(self._rental, pod.job_id))


def _as_lost(pod: Pod, seen: LostMachine | None, now: float) -> LostMachine:
    """Describe a pod that may turn out lost. `seen` is its description from the last look."""
    return LostMachine(
        id=pod.id,
        cloud="RunPod",
        gpu=pod.gpu,
        count=pod.count,
        price=pod.price if pod.price is not None or seen is None else seen.price,
        managed_job=str(pod.job_id),
        begin=seen.begin if seen else min(pod.created or now, now),
        end=now,
    )
