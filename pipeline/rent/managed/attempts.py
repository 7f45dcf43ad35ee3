"""Remember the machines that a managed job has had, from the run's store and from SkyPilot.

The store names each machine that claimed the run. SkyPilot names only the job's present machine, so
a watcher must remember the machines that ran but never claimed the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.machine.rented import RENTED
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.place import Place, place_of
from pipeline.state.metrics import read_events
from pipeline.state.records import Head
from pipeline.state.run_state import RunState


@dataclass(frozen=True)
class Attempt:
    """A machine that was rented at `began` (Unix seconds)."""

    place: Place
    began: float


class _Running(NamedTuple):
    """A machine that SkyPilot saw running. A job has another machine after each recovery."""

    job_id: int
    recoveries: int


class AttemptMemory:
    """The machines of the watched job, oldest first."""

    def __init__(self, state: RunState) -> None:
        self.found: list[Attempt] = []
        self._state = state
        self._job_id: int | None = None
        self._running: _Running | None = None
        self._seen_running: list[Attempt] = []
        # None until the store was read.
        self._claimed: list[Attempt] | None = None
        self._forgotten_until = 0.0

    def forget(self) -> None:
        """Ignore all machines until now, because their problem was acted on."""
        self.found, self._forgotten_until = [], self._state.clock.now()

    def note(self, job: ManagedJob | None, head: Head | None, now: float) -> None:
        """Add the job's present machine, and read the store if the machine is new."""
        if job is None:
            return
        if job.id != self._job_id:
            self._job_id, self.found, self._claimed, self._seen_running = job.id, [], None, []
        running = None
        if job.status == "RUNNING" and job.place:
            running = _Running(job.id, job.recoveries)
        is_new = running is not None and running != self._running
        if is_new:
            self._running = running
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
