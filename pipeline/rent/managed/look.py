"""Look at a rented run again and again, and remember what no single look can show."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.rent.managed.diagnose import Attempt, Place, RunView, SkyView
from pipeline.rent.managed.follow import Progress
from pipeline.rent.managed.managed_jobs import ManagedJob, cluster_name
from pipeline.rent.managed.pods import Pod
from pipeline.state.head import RunState
from pipeline.state.metrics import read_events
from pipeline.state.records import Head
from pipeline.status import run_status
from pipeline.stop import is_finished

BEAT_PAUSE_SECONDS = 60.0
"""Heartbeats further apart than this are not going on."""


@dataclass(frozen=True)
class Look:
    """What SkyPilot, the provider and the store said at one moment."""

    head: Head | None
    sky: SkyView
    run: RunView
    progress: Progress


class Lookout:
    """Looks at the rental called `name` of a run.

    It follows the managed job `job_id`, or the newest of that name that lives.
    `managed_jobs` gives those of that name, the newest first; `list_pods` is None where RunPod
    can't be asked.
    """

    def __init__(
        self,
        state: RunState,
        name: str,
        job_id: int,
        managed_jobs: Callable[[str], Sequence[ManagedJob]],
        list_pods: Callable[[], Sequence[Pod]] | None,
    ) -> None:
        self.state, self.name, self.job_id = state, name, job_id
        self._managed_jobs, self._list_pods = managed_jobs, list_pods
        self._attempts: list[Attempt] = []
        self._read_machines = False
        self._machine_of: tuple[int, int] | None = None  # job and recoveries, of the last attempt
        self._phase: tuple[int, str] | None = None  # job and status
        self._had_pod = False
        self._gone_since: float | None = None
        self._beat: tuple[float | None, float] = (None, 0.0)  # the newest, and when it was seen
        self._step: tuple[object, float] | None = None  # the newest, and since when it stands still

    def look(self) -> Look:
        """Raises PionError (SkyPilot, RunPod or the store can't be asked)."""
        # Pods before jobs: a pod that is listed belongs to a job that is known by now.
        pods = self._list_pods() if self._list_pods is not None else None
        job = self._job()
        head = self.state.read()
        now = self.state.clock.now()
        status = run_status(self.state, head, now) if head is not None else None
        mine: tuple[Pod, ...] | None = None
        if pods is not None and job is not None and (job.cloud or "RunPod").lower() == "runpod":
            cluster = cluster_name(self.name, job.id)
            mine = tuple(pod for pod in pods if pod.belongs_to(cluster))
        self._note_pods(job, mine, now)
        self._note_machine(job, head, now)
        return Look(
            head,
            SkyView(job, mine, self._gone_since, tuple(self._attempts)),
            RunView() if head is None or status is None else self._run_view(head, status, now),
            Progress(now, job, status),
        )

    def forget_machines(self) -> None:
        """What machines did so far no longer counts: something was done about it."""
        self._attempts = []

    def _job(self) -> ManagedJob | None:
        jobs = self._managed_jobs(self.name)
        self.job_id = next((job.id for job in jobs if job.live), self.job_id)
        return next((job for job in jobs if job.id == self.job_id), None)

    def _note_pods(self, job: ManagedJob | None, pods: tuple[Pod, ...] | None, now: float) -> None:
        """Since when the job lacks the pod that it should have."""
        phase = (job.id, job.status) if job is not None else None
        if phase != self._phase:
            self._phase, self._had_pod, self._gone_since = phase, False, None
        self._had_pod = self._had_pod or bool(pods)
        expected = self._had_pod or (job is not None and job.status == "RUNNING")
        self._gone_since = (self._gone_since or now) if expected and pods == () else None

    def _note_machine(self, job: ManagedJob | None, head: Head | None, now: float) -> None:
        """Those of the store, once, and from then on each that SkyPilot gets for the job."""
        this = (job.id, job.recoveries) if job is not None and job.status == "RUNNING" else None
        if head is not None and not self._read_machines:
            self._attempts = machines_so_far(self.state) or self._attempts
            if self._attempts and not self._read_machines:
                self._machine_of = self._machine_of or this
            self._read_machines = True
        if job is not None and this is not None and job.place and this != self._machine_of:
            self._machine_of = this
            self._attempts.append(Attempt(place_of(job), now))

    def _run_view(self, head: Head, status: dict[str, Any], now: float) -> RunView:
        age = status["heartbeat_age"]
        beat_at = None if age is None else now - age
        progress = status["progress"] or {}
        step = (head.epoch, progress.get("stage"), progress.get("step"))
        beat, seen = self._beat
        if beat_at is None or beat is None or abs(beat_at - beat) > 0.001:
            # After a pause, as while its store was down, a run has the right to catch up first.
            if self._step is None or self._step[0] != step or now - seen > BEAT_PAUSE_SECONDS:
                self._step = (step, now)
            self._beat = (beat_at, now)
        goes_on = beat_at is not None and now - self._beat[1] <= BEAT_PAUSE_SECONDS
        stands = self._step is not None and "step" in progress and goes_on
        return RunView(
            finished=is_finished(self.state, head),
            stop=status["stop"]["reason"] if status["stop"] else None,
            claimed_at=head.claims[0].at if head.owner is not None else None,
            beat_at=beat_at,
            stalled_since=self._step[1] if stands and self._step is not None else None,
            last_sign=now - status["last_commit_age"],
            heartbeats=status["heartbeats"],
        )


def machines_so_far(state: RunState) -> list[Attempt]:
    """The machines that the run was worked on so far, oldest first, from its events."""
    events = [e for e in read_events(state.store, state.name) if e["event"] == "machine"]
    first = {str(event["id"]): event for event in reversed(events)}.values()
    found = [
        Attempt(
            Place(e.get("cloud"), e.get("region"), e.get("gpu"), bool(e.get("spot"))),
            float(e.get("rented_at") or e["at"]),
        )
        for e in first
    ]
    return sorted(found, key=lambda attempt: attempt.began)


def place_of(job: ManagedJob) -> Place:
    """Where a managed job's machine is, read from SkyPilot's words: `[spot](A40:1, cpus=9)`."""
    words = job.resources or ""
    gpu = re.search(r"([A-Za-z][\w-]*):\d", words)
    return Place(job.cloud, job.region, gpu.group(1) if gpu else None, "[spot]" in words.lower())
