"""Remember between two looks: pods and what they cost, machines, heartbeats and steps.

The store names each machine that claimed the run. SkyPilot names only the job's present machine, so
a watcher must remember the machines that ran but never claimed the run. Their cost is recorded in
the run's events. Once RunPod has forgotten a pod, this event is the only record of its cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pion.errors import PionError
from pipeline.cost.costs import LostMachine, RunLog, costs_of, keep_lost, owners_of
from pipeline.machine.rented import RENTED
from pipeline.rent.managed.look.diagnose import Attempt
from pipeline.rent.managed.provider.jobs import ManagedJob, Place, place_of
from pipeline.rent.managed.provider.pods import Pod
from pipeline.state.head import Head
from pipeline.state.metrics import read_events
from pipeline.state.run_state import RunState

# Costs are read from a run's events at most this often.
COST_SECONDS = 60.0
# If no heartbeat comes for longer than this, heartbeats have paused.
BEAT_PAUSE_SECONDS = 60.0


class PodMemory:
    """When each pod of one job was first seen, and since when the job lacks a pod."""

    def __init__(self) -> None:
        # None while no pod is missing.
        self.gone_since: float | None = None
        self._first_seen: dict[str, float] = {}
        self._status: str | None = None
        self._had_pod = False

    def note(self, job: ManagedJob, pods: Sequence[Pod] | None, now: float) -> None:
        """Compare the job's pods with earlier looks. `pods` is None if they are unknown."""
        for pod in pods or ():
            if pod.alive:
                self._first_seen.setdefault(pod.id, now)
        if job.status != self._status:
            self._status, self._had_pod, self.gone_since = job.status, False, None
        self._had_pod = self._had_pod or bool(pods)
        expected = self._had_pod or job.status == "RUNNING"
        is_gone = expected and pods is not None and not pods
        self.gone_since = (self.gone_since or now) if is_gone else None

    def newest_since(self, pods: Sequence[Pod] | None) -> float | None:
        """Return when the newest live pod was first seen."""
        seen = [self._first_seen[pod.id] for pod in pods or () if pod.alive]
        return max(seen, default=None)


class StepKey(NamedTuple):
    """How far a run has come, from its heartbeat. `step` is None before the first step."""

    epoch: int
    stage: str | None
    step: int | None


class _SeenBeat(NamedTuple):
    """A heartbeat's time by the owner's clock, and its first look by the watcher's clock."""

    at: float | None
    seen: float


class _SeenStep(NamedTuple):
    """A step, and since when there was no later step."""

    step: StepKey
    since: float


class StepMemory:
    """Since when there are heartbeats without a new step."""

    def __init__(self) -> None:
        self._beat: _SeenBeat | None = None
        self._step: _SeenStep | None = None

    def stalled_since(self, beat_at: float | None, step: StepKey, now: float) -> float | None:
        """Record a look; return since when heartbeats continue without a new step."""
        beat = self._beat
        if beat is None or not _same_beat(beat.at, beat_at):
            # After a pause, for example an outage of the store, a run may first catch up.
            paused = beat is None or now - beat.seen > BEAT_PAUSE_SECONDS
            if self._step is None or self._step.step != step or paused:
                self._step = _SeenStep(step, now)
            self._beat = beat = _SeenBeat(beat_at, now)
        beats = beat_at is not None and now - beat.seen <= BEAT_PAUSE_SECONDS
        if self._step is None or step.step is None or not beats:
            return None
        return self._step.since


def _same_beat(before: float | None, at: float | None) -> bool:
    """Return whether both are one heartbeat. Its age was rounded, so its time may vary a little."""
    return before is not None and at is not None and abs(at - before) <= 0.001


class _Counted(NamedTuple):
    """The cost of all machines, added up at `at`."""

    at: float
    dollars: float | None
    machines: frozenset[str]


class CostMemory:
    """The cost of all machines of a run, updated every COST_SECONDS."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._counted: _Counted | None = None
        self._ended_job: int | None = None

    def dollars(
        self,
        head: Head | None,
        job: ManagedJob,
        booting: Collection[LostMachine],
        now: float,
    ) -> float | None:
        """Return the dollars of all machines, including those that still boot."""
        ended_job = None if job.live else job.id
        has_just_ended = ended_job not in (None, self._ended_job)
        self._ended_job = ended_job
        counted = self._counted
        if head is not None and (
            has_just_ended or counted is None or now - counted.at >= COST_SECONDS
        ):
            events = read_events(self._state.store, self._state.name)
            costs = costs_of(self._state, head, now, RunLog(events, {}))
            ids = frozenset(machine.id for machine in costs.machines)
            self._counted = counted = _Counted(now, costs.dollars, ids)
        dollars = counted.dollars if counted else None
        known = counted.machines if counted else frozenset()
        for pod in booting:
            if pod.id not in known and pod.price is not None:
                dollars = (dollars or 0.0) + pod.price * pod.seconds / 3600
        return dollars


class AttemptMemory:
    """The machines of one job, oldest first."""

    def __init__(self, state: RunState) -> None:
        self.found: list[Attempt] = []
        self._state = state
        # How often the job had recovered when SkyPilot last saw it running: it has another machine
        # after each recovery.
        self._recoveries: int | None = None
        self._seen_running: list[Attempt] = []
        # None until the store was read.
        self._claimed: list[Attempt] | None = None
        self._forgotten_until = 0.0

    def forget(self) -> None:
        """Ignore all machines until now, because their problem was acted on."""
        self.found, self._forgotten_until = [], self._state.clock.now()

    def note(self, job: ManagedJob, head: Head | None, now: float) -> None:
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
        found = each_once(self._claimed or [], self._seen_running)
        self.found = [attempt for attempt in found if attempt.began > self._forgotten_until]


def claimed_machines(state: RunState, job_id: int) -> list[Attempt]:
    """Return the machines of a managed job that have claimed the run, oldest first."""
    events = [
        event
        for event in read_events(state.store, state.name)
        if event["event"] == RENTED and str(event.get("managed_job")) == str(job_id)
    ]
    first = {str(event["id"]): event for event in reversed(events)}.values()
    found = [
        Attempt(
            Place(e.get("cloud"), e.get("region"), e.get("gpu"), bool(e.get("spot"))),
            float(e.get("rented_at") or e["at"]),
        )
        for e in first
    ]
    return sorted(found, key=lambda attempt: attempt.began)


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
            if pod.id in self._noted or not pod.is_of(self._rental):
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
