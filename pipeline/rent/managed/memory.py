"""Remember pods, heartbeats, steps and costs between two looks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pipeline.cost.costs import LostMachine, RunLog, costs_of
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.pods import Pod
from pipeline.state.metrics import read_events
from pipeline.state.records import Head
from pipeline.state.run_state import RunState

# Costs are read from a run's events at most this often.
COST_SECONDS = 60.0
# If no heartbeat comes for longer than this, heartbeats have paused.
BEAT_PAUSE_SECONDS = 60.0


class _Phase(NamedTuple):
    """A managed job in one status."""

    job_id: int
    status: str


class PodMemory:
    """When each of a job's pods was first seen, and since when the job lacks a pod."""

    def __init__(self) -> None:
        # None while no pod is missing.
        self.gone_since: float | None = None
        self._first_seen: dict[str, float] = {}
        self._phase: _Phase | None = None
        self._had_pod = False

    def note(self, job: ManagedJob | None, pods: Sequence[Pod] | None, now: float) -> None:
        """Compare the job's pods with earlier looks. `pods` is None if they are unknown."""
        for pod in pods or ():
            if pod.alive:
                self._first_seen.setdefault(pod.id, now)
        phase = _Phase(job.id, job.status) if job is not None else None
        if phase != self._phase:
            self._phase, self._had_pod, self.gone_since = phase, False, None
        self._had_pod = self._had_pod or bool(pods)
        expected = self._had_pod or (job is not None and job.status == "RUNNING")
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
        job: ManagedJob | None,
        booting: Collection[LostMachine],
        now: float,
    ) -> float | None:
        """Return the dollars of all machines, including those that still boot."""
        ended_job = job.id if job is not None and not job.live else None
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
