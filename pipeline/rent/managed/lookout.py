"""Look at a rented run again and again, and remember what no single look can show."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pion.errors import PionError
from pipeline.cost.by_cause import RunLog, costs_of
from pipeline.cost.lost import LostMachine, keep_lost, owners_of
from pipeline.rent.managed.diagnose import Attempt, Place, RunView, SkyView
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.progress import Progress
from pipeline.rent.managed.task import launch_id_of
from pipeline.state.metrics import read_events
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished, run_status
from pipeline.state.stop_requests import pending_stop

COST_SECONDS = 60.0
"""Between two times that a run's events are read for what its machines have cost."""
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
        self._attempts_of: int | None = None  # job
        self._claimed: list[Attempt] | None = None  # by the store; None before it was read
        self._ran: list[Attempt] = []  # by SkyPilot, while somebody watched
        self._machine_of: tuple[int, int] | None = None  # job and recoveries, of the last of those
        self._forgotten = 0.0  # what was rented until then does not count
        self._phase: tuple[int, str] | None = None  # job and status
        self._had_pod = False
        self._gone_since: float | None = None
        self._pods_seen: dict[str, float] = {}  # when each that lived was first seen
        self._rented: dict[str, LostMachine] = {}  # pods that will be lost unless they own the run
        self._noted: set[str] = set()  # pods of which nothing is left to note
        self._beat: tuple[float | None, float] = (None, 0.0)  # the newest, and when it was seen
        self._step: tuple[object, float] | None = None  # the newest, and since when it stands still
        self._over: int | None = None  # the job, once it has ended
        self._costs: tuple[float, float | None, set[str]] | None = None  # when, and what they were

    def look(self) -> Look:
        """Raises PionError (SkyPilot, RunPod or the store can't be asked)."""
        # Pods before jobs: a pod that is listed belongs to a job that is known by now.
        pods = self._list_pods() if self._list_pods is not None else None
        job = self._job()
        now = self.state.clock.now()
        if pods is not None:
            self._note_lost(job, pods, now)
        head = self.state.read()
        status = run_status(self.state, head, now) if head is not None else None
        mine: tuple[Pod, ...] | None = None
        if pods is not None and job is not None and (job.cloud or "RunPod").lower() == "runpod":
            cluster = cluster_name(self.name, job.id)
            mine = tuple(pod for pod in pods if pod.belongs_to(cluster))
        self._note_pods(job, mine, now)
        self._note_machine(job, head, now)
        seen = [self._pods_seen[pod.id] for pod in mine or () if pod.alive]
        last = self._attempts[-1].place if self._attempts else None
        sky = SkyView(
            job,
            mine,
            self._gone_since,
            max(seen, default=None),
            attempts=tuple(self._attempts),
            place=place_of(job) if job is not None and job.place else last,
        )
        run = RunView() if head is None or status is None else self._run_view(head, status, now)
        if head is not None and job is not None:
            run = self._of_this_job(run, head, job)
        over = job.id if job is not None and not job.live else None
        dollars = self._dollars(head, now, now_over=over not in (None, self._over))
        self._over = over
        return Look(head, sky, run, Progress(now, job, status, dollars))

    def _dollars(self, head: Head | None, now: float, *, now_over: bool) -> float | None:
        """What all machines have cost, by their owners' words, and those that still boot."""
        due = now_over or self._costs is None or now - self._costs[0] >= COST_SECONDS
        if head is not None and due:
            events = read_events(self.state.store, self.state.name)
            costs = costs_of(self.state, head, now, RunLog(events, {}))
            self._costs = now, costs.dollars, {machine.id for machine in costs.machines}
        _, dollars, counted = self._costs or (now, None, set())
        for pod in self._rented.values():
            if pod.id not in counted and pod.price is not None:
                dollars = (dollars or 0.0) + pod.price * pod.seconds / 3600
        return dollars

    def forget_machines(self) -> None:
        """What machines did so far no longer counts: something was done about it."""
        self._attempts, self._forgotten = [], self.state.clock.now()

    def _job(self) -> ManagedJob | None:
        jobs = self._managed_jobs(self.name)
        self.job_id = next((job.id for job in jobs if job.live), self.job_id)
        return next((job for job in jobs if job.id == self.job_id), None)

    def _note_pods(self, job: ManagedJob | None, pods: tuple[Pod, ...] | None, now: float) -> None:
        """Since when the job has each pod, and since when it lacks the one that it should have."""
        for pod in pods or ():
            if pod.alive:
                self._pods_seen.setdefault(pod.id, now)
        phase = (job.id, job.status) if job is not None else None
        if phase != self._phase:
            self._phase, self._had_pod, self._gone_since = phase, False, None
        self._had_pod = self._had_pod or bool(pods)
        expected = self._had_pod or (job is not None and job.status == "RUNNING")
        self._gone_since = (self._gone_since or now) if expected and pods == () else None

    def _note_lost(self, job: ManagedJob | None, pods: Sequence[Pod], now: float) -> None:
        """Keep in the run's events each pod that has ended, or whose job has, without the run.

        Of all jobs of that name. Once RunPod has forgotten a pod nobody else knows what it cost. A
        store that is down is told at the next look.
        """
        alive = set()
        for pod in pods:
            if pod.id in self._noted or not self._is_ours(pod):
                continue
            if pod.alive:
                alive.add(pod.id)
            seen = self._rented.get(pod.id)
            if seen is None or pod.alive:
                begin = seen.begin if seen else min(pod.created or now, now)
                price = pod.price if pod.price is not None or seen is None else seen.price
                self._rented[pod.id] = LostMachine(
                    pod.id, "RunPod", pod.gpu, pod.count, price, str(pod.job_id), begin, now
                )
        over = job is not None and not job.live  # it may be that nobody looks again
        ended = [seen for seen in self._rented.values() if over or seen.id not in alive]
        if not ended:
            return
        with contextlib.suppress(PionError):
            owners = owners_of(read_events(self.state.store, self.state.name))
            for machine in ended:
                if machine.id not in owners:
                    keep_lost(self.state, machine)
                del self._rented[machine.id]
                self._noted.add(machine.id)

    def _is_ours(self, pod: Pod) -> bool:
        """Whether a pod was rented for this run, by whichever job."""
        return pod.job_id is not None and pod.belongs_to(cluster_name(self.name, pod.job_id))

    def _note_machine(self, job: ManagedJob | None, head: Head | None, now: float) -> None:
        """The machines that the job had, by the store's word and by SkyPilot's."""
        if job is None:
            return
        if job.id != self._attempts_of:
            self._attempts_of, self._attempts, self._claimed, self._ran = job.id, [], None, []
        this = (job.id, job.recoveries) if job.status == "RUNNING" and job.place else None
        another = this is not None and this != self._machine_of
        if another:
            self._machine_of = this
            self._ran.append(Attempt(place_of(job), now))
        if head is not None and (another or self._claimed is None):
            self._claimed = machines_so_far(self.state, job.id)
        elif not another:
            return
        found = each_once(self._claimed or [], self._ran)
        self._attempts = [attempt for attempt in found if attempt.began > self._forgotten]

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

    def _of_this_job(self, run: RunView, head: Head, job: ManagedJob) -> RunView:
        """The view without what another launch was asked, or has finished.

        A hop asks every launch to stop but the one it hands the run over to; and a finished run
        may be launched once more, with more to do.
        """
        last = head.claims[0].owner.launch_id if head.claims else None
        launch = launch_id_of(job) or last
        stop = pending_stop(self.state, launch_id=launch) if run.stop is not None else None
        return replace(
            run,
            finished=run.finished and launch == last,
            stop=stop.reason if stop is not None else None,
        )


def machines_so_far(state: RunState, job_id: int) -> list[Attempt]:
    """The machines of a managed job that have claimed the run, oldest first, from its events."""
    events = [
        e
        for e in read_events(state.store, state.name)
        if e["event"] == "machine" and str(e.get("managed_job")) == str(job_id)
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


def each_once(claimed: Sequence[Attempt], ran: Sequence[Attempt]) -> list[Attempt]:
    """The machines of a job, oldest first, of which the store knows those that claimed the run, and
    SkyPilot those it saw to run, a while after they were rented."""
    found, known = list(claimed), set()
    for attempt in ran:
        before = [n for n, machine in enumerate(claimed) if machine.began <= attempt.began]
        if before and before[-1] not in known:
            known.add(before[-1])
        else:
            found.append(attempt)
    return sorted(found, key=lambda attempt: attempt.began)


def place_of(job: ManagedJob) -> Place:
    """Where a managed job's machine is, read from SkyPilot's words: `[spot](A40:1, cpus=9)`."""
    words = job.resources or ""
    gpu = re.search(r"([A-Za-z][\w-]*):\d", words)
    return Place(job.cloud, job.region, gpu.group(1) if gpu else None, "[spot]" in words.lower())
