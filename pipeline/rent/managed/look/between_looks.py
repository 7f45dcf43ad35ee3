"""Remember between two looks: pods and what they cost, machines, heartbeats and steps.

The store names each machine that claimed the run. SkyPilot names only the job's present machine, so
a watcher must remember the machines that ran but never claimed the run. Their cost is recorded in
the run's events. Once RunPod has forgotten a pod, this event is the only record of its cost.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pion.errors import PionError
from pipeline.cost.costs import RunLog, costs_of, keep_lost, owners_of
from pipeline.machine.rented import RENTED
from pipeline.rent.managed.look.diagnose import Attempt
from pipeline.rent.managed.provider.jobs import ManagedJob, Place, place_of
from pipeline.rent.managed.provider.pods import Pod
from pipeline.state.head import Head
from pipeline.state.rows.metrics import read_events
from pipeline.state.rows.row_types import LostMachine
from pipeline.state.run_state import RunState

# Costs are read from a run's events at most this often.
COST_SECONDS = 60.0
# If no heartbeat comes for longer than this, heartbeats have paused.
BEAT_PAUSE_SECONDS = 60.0


class StepKey(NamedTuple):
    """How far a run has come, from its heartbeat. `step` is None before the first step."""

    epoch: int
    stage: str | None
    step: int | None


class StepMemory:
    """Since when there are heartbeats without a new step."""

    def __init__(self) -> None:
        # The last heartbeat's time by the owner's clock, and its first look by the watcher's clock.
        self._beat_at: float | None = None
        self._beat_seen = -math.inf
        # The last step, and since when there was no later step.
        self._step: StepKey | None = None
        self._since = 0.0

    def stalled_since(self, beat_at: float | None, step: StepKey, now: float) -> float | None:
        """Record a look; return since when heartbeats continue without a new step."""
        before = self._beat_at
        # A heartbeat's age was rounded, so its time may vary a little.
        if before is None or beat_at is None or abs(beat_at - before) > 0.001:
            # After a pause, for example an outage of the store, a run may first catch up.
            paused = now - self._beat_seen > BEAT_PAUSE_SECONDS
            if self._step != step or paused:
                self._step, self._since = step, now
            self._beat_at, self._beat_seen = beat_at, now
        beats = beat_at is not None and now - self._beat_seen <= BEAT_PAUSE_SECONDS
        return self._since if beats and step.step is not None else None


class CostMemory:
    """The cost of all machines of a run, updated every COST_SECONDS."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        # When the cost of these machines was last added up.
        self._counted_at = -math.inf
        self._dollars: float | None = None
        self._machines: frozenset[str] = frozenset()
        self._ended_job: int | None = None

    def dollars(
        self,
        head: Head | None,
        job: ManagedJob,
        booting: Mapping[str, LostMachine],
        now: float,
    ) -> float | None:
        """Return the dollars of all machines, including those that still boot."""
        ended_job = None if job.live else job.id
        has_just_ended = ended_job not in (None, self._ended_job)
        self._ended_job = ended_job
        if head is not None and (has_just_ended or now - self._counted_at >= COST_SECONDS):
            events = read_events(self._state.store, self._state.name)
            costs = costs_of(self._state, head, now, RunLog(events, {}))
            self._counted_at, self._dollars = now, costs.dollars
            self._machines = frozenset(machine.id for machine in costs.machines)
        dollars = self._dollars
        for pod in booting.values():
            if pod["id"] not in self._machines and pod["price"] is not None:
                hours = max(0.0, pod["end"] - pod["begin"]) / 3600
                dollars = (dollars or 0.0) + pod["price"] * hours
        return dollars


class JobMemory:
    """What earlier looks have seen of one managed job.

    Attributes:
        attempts: the machines that it has had, oldest first.
        gone_since: since when the job lacks a pod; None while no pod is missing.
        pod_since: when the newest of its live pods was first seen.
    """

    def __init__(self, state: RunState) -> None:
        self.attempts: list[Attempt] = []
        self.gone_since: float | None = None
        self.pod_since: float | None = None
        self._state = state
        self._first_seen: dict[str, float] = {}  # of each pod
        self._status: str | None = None
        self._had_pod = False
        # How often the job had recovered when SkyPilot last saw it running: it has another machine
        # after each recovery.
        self._recoveries: int | None = None
        self._seen_running: list[Attempt] = []
        # None until the store was read.
        self._claimed: list[Attempt] | None = None

    def note_pods(self, job: ManagedJob, pods: Sequence[Pod] | None, now: float) -> None:
        """Compare the job's pods with earlier looks. `pods` is None if they are unknown."""
        seen = [self._first_seen.setdefault(pod.id, now) for pod in pods or () if pod.alive]
        self.pod_since = max(seen, default=None)
        if job.status != self._status:
            self._status, self._had_pod, self.gone_since = job.status, False, None
        self._had_pod = self._had_pod or bool(pods)
        expected = self._had_pod or job.status == "RUNNING"
        is_gone = expected and pods is not None and not pods
        self.gone_since = (self.gone_since or now) if is_gone else None

    def note_machine(self, job: ManagedJob, head: Head | None, now: float) -> None:
        """Add the job's present machine, and read the store if the machine is new."""
        running = job.status == "RUNNING" and bool(job.place)
        is_new = running and job.recoveries != self._recoveries
        if is_new:
            self._recoveries = job.recoveries
            self._seen_running.append(Attempt(place_of(job), now))
        if head is not None and (is_new or self._claimed is None):
            self._claimed = claimed_machines(self._state, job.id)
        elif not is_new:
            return
        self.attempts = each_once(self._claimed or [], self._seen_running)


def claimed_machines(state: RunState, job_id: int) -> list[Attempt]:
    """Return the machines of a managed job that have claimed the run, oldest first."""
    first = {
        str(event["id"]): event
        for event in reversed(read_events(state.store, state.name))
        if event["event"] == RENTED and str(event.get("managed_job")) == str(job_id)
    }
    attempts = [
        Attempt(
            Place(e.get("cloud"), e.get("region"), e.get("gpu"), bool(e.get("spot"))),
            float(e.get("rented_at") or e["at"]),
        )
        for e in first.values()
    ]
    return sorted(attempts, key=lambda attempt: attempt.began)


def each_once(claimed: Sequence[Attempt], seen_running: Sequence[Attempt]) -> list[Attempt]:
    """Merge both lists of one job's machines, oldest first.

    SkyPilot sees a machine only some time after it was rented, so the same machine begins later in
    `seen_running` than in `claimed`.
    """
    found, known = list(claimed), set()
    for attempt in seen_running:
        before = [n for n, machine in enumerate(claimed) if machine.began <= attempt.began]
        if before and before[-1] not in known:
            known.add(before[-1])
        else:
            found.append(attempt)
    return sorted(found, key=lambda attempt: attempt.began)


class LostPods:
    """The pods that any managed job called `rental` has rented for a run.

    `booting` are those that have not ended, or whose end is not in the store yet, by their ids. A
    pod in there is lost unless it claims the run before it ends.
    """

    def __init__(self, state: RunState, rental: str) -> None:
        self._state, self._rental = state, rental
        self.booting: dict[str, LostMachine] = {}
        # Pods that have ended, and whose cost is in the store.
        self._noted: set[str] = set()

    def note(self, job: ManagedJob | None, pods: Sequence[Pod], now: float) -> None:
        """Record each pod that never claimed the run, once the pod or its job has ended.

        If the store is down, try again at the next look.
        """
        alive = {pod.id for pod in pods if pod.alive}
        for pod in pods:
            if pod.id in self._noted or not pod.is_of(self._rental):
                continue
            seen = self.booting.get(pod.id)
            if seen is None or pod.alive:
                # The pod may turn out lost. `seen` is what the last look said of the pod.
                self.booting[pod.id] = LostMachine(
                    id=pod.id,
                    cloud="RunPod",
                    gpu=pod.gpu,
                    count=pod.count,
                    price=pod.price if pod.price is not None or seen is None else seen["price"],
                    managed_job=str(pod.job_id),
                    begin=seen["begin"] if seen else min(pod.created or now, now),
                    end=now,
                )
        # If the job has ended, this may be the last look.
        job_ended = job is not None and not job.live
        ended = [lost for id, lost in self.booting.items() if job_ended or id not in alive]
        if not ended:
            return
        with contextlib.suppress(PionError):
            owners = owners_of(read_events(self._state.store, self._state.name))
            for machine in ended:
                if machine["id"] not in owners:
                    keep_lost(self._state, machine)
                del self.booting[machine["id"]]
                self._noted.add(machine["id"])
