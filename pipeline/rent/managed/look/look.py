"""Look at a rented run repeatedly: ask SkyPilot, RunPod and the run's store, and remember."""

from __future__ import annotations

import contextlib
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pion.errors import PionError
from pipeline.rent.managed.look.between_looks import (
    CostMemory,
    JobMemory,
    LostPods,
    StepKey,
    StepMemory,
)
from pipeline.rent.managed.look.diagnose import Finding, RunView, SkyView
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.provider.jobs import ManagedJob, place_of
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import launch_id_of, variable_of
from pipeline.rent.sky_yaml import UNTIL
from pipeline.state.head import Head
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import is_finished, run_status
from pipeline.state.stores import StoreError


@dataclass(frozen=True)
class JobLook:
    """What is known about one managed job, and about the run as far as it concerns that job."""

    sky: SkyView
    run: RunView

    @property
    def job(self) -> ManagedJob:
        """The managed job."""
        return self.sky.job


@dataclass(frozen=True)
class Look:
    """What SkyPilot, the provider and the store said at one moment.

    Attributes:
        head: the run's HEAD; None before its first claim.
        of_jobs: about each job that is looked at: first the one that is followed, then the other
            live jobs of the rental, the newest first, and the owner's job if it has lost its
            controller.
        at: the moment, in Unix seconds.
        status: as `run_status` says; None before the run's first claim.
        dollars: the cost of all machines of the run; None if no price is known.
        jobs: every job of the rental that SkyPilot knows, ended or not, the newest first.
        stale: whether the store could not be read. What it says is then from the last look.
        given_up: the numbers of jobs that are, or will be, cancelled because they make no progress.
    """

    head: Head | None
    of_jobs: tuple[JobLook, ...]
    at: float
    status: Mapping[str, Any] | None = None
    dollars: float | None = None
    jobs: tuple[ManagedJob, ...] = ()
    stale: bool = False
    given_up: frozenset[int] = frozenset()

    @property
    def followed(self) -> JobLook:
        """What is known about the managed job that is followed."""
        return self.of_jobs[0]


class _StoreSays(NamedTuple):
    """HEAD, and what follows from it."""

    head: Head | None
    status: dict[str, Any] | None
    run: RunView


class Lookout:
    """Looks at the rental called `name` of a run.

    `job_id` is the managed job that is followed: the newest live job of that name. If `patient`, a
    store that is down does not end a look, once the store has been read. `pods` are the rental's
    live pods at the last look.
    """

    def __init__(self, state: RunState, name: str, job_id: int, provider: Provider) -> None:
        self.state, self.name, self.job_id = state, name, job_id
        self.patient = False
        self.pods: Sequence[Pod] = ()
        self._provider = provider
        self._memories: dict[int, JobMemory] = {}
        self._lost = LostPods(state, name)
        self._steps = StepMemory()
        self._costs = CostMemory(state)
        self._store: _StoreSays | None = None

    def look(self) -> Look:
        """Ask SkyPilot, RunPod and the store. Raises PionError if one of them can't be asked."""
        pods, jobs = self._provider.says(self.name)
        self.job_id = next((job.id for job in jobs if job.live), self.job_id)
        job = next((job for job in jobs if job.id == self.job_id), None)
        now = self.state.clock.now()
        if pods is not None:
            self._lost.note(job, pods, now)
            self.pods = [pod for pod in pods if pod.alive and pod.is_of(self.name)]
        if job is None:
            raise PionError(f"SkyPilot no longer lists managed job {self.job_id}.")
        store, stale = self._read_store(now)
        looks = [
            self._look_at(each, pods, store, now, stale=stale)
            for each in jobs
            if each.live or each is job or _lost_owner(each, store.head)
        ]
        looks.sort(key=lambda look: look.job is not job)
        dollars = self._costs.dollars(None if stale else store.head, job, self._lost.booting, now)
        return Look(store.head, tuple(looks), now, store.status, dollars, tuple(jobs), stale=stale)

    def _read_store(self, now: float) -> tuple[_StoreSays, bool]:
        """Return what the store says, and whether that is from an earlier look."""
        try:
            self._store = self._ask_store(now)
        except StoreError:
            if self._store is None or not self.patient:
                raise
            return self._store, True
        return self._store, False

    def _memory(self, job_id: int) -> JobMemory:
        return self._memories.setdefault(job_id, JobMemory(self.state))

    def _look_at(
        self,
        job: ManagedJob,
        pods: Sequence[Pod] | None,
        store: _StoreSays,
        now: float,
        *,
        stale: bool,
    ) -> JobLook:
        memory = self._memory(job.id)
        mine: tuple[Pod, ...] | None = None  # RunPod was not asked, or the job is on another cloud
        if pods is not None and job.may_be_on_runpod:
            cluster = cluster_name(self.name, job.id)
            mine = tuple(pod for pod in pods if pod.belongs_to(cluster))
        memory.note_pods(job, mine, now)
        if not stale:
            memory.note_machine(job, store.head, now)
        found = tuple(memory.attempts)
        sky = SkyView(
            job,
            mine,
            gone_since=memory.gone_since,
            pod_since=memory.pod_since,
            attempts=found,
            place=place_of(job) if job.place else found[-1].place if found else None,
        )
        if store.head is None:
            return JobLook(sky, store.run)
        return JobLook(sky, self._of_this_launch(store.run, store.head, job, stale=stale))

    def _ask_store(self, now: float) -> _StoreSays:
        head = self.state.read()
        if head is None:
            return _StoreSays(None, None, RunView())
        status = run_status(self.state, head, now)
        age = status["heartbeat_age"]
        beat_at = None if age is None else now - age
        progress = status["progress"] or {}
        step = StepKey(head.epoch, progress.get("stage"), progress.get("step"))
        run = RunView(
            finished=is_finished(self.state, head),
            stop=status["stop"]["reason"] if status["stop"] else None,
            claimed_at=head.claims[0].at if head.owner is not None else None,
            beat_at=beat_at,
            stalled_since=self._steps.stalled_since(beat_at, step, now),
            last_sign=now - status["last_commit_age"],
            heartbeats=status["heartbeats"],
        )
        return _StoreSays(head, status, run)

    def _of_this_launch(self, run: RunView, head: Head, job: ManagedJob, *, stale: bool) -> RunView:
        """Leave out what concerns another launch: its request to stop, that it has finished, and
        its signs of life.

        A hop asks every launch to stop except the one that takes over the run. A finished run may
        be launched again with more to do. A rental that ends after a stage is finished before the
        run is.
        """
        last = head.claims[0].owner.launch_id if head.claims else None
        launch = launch_id_of(job) or last
        asked = run.stop is not None and not stale
        stop = pending_stop(self.state, launch_id=launch) if asked else None
        if launch != last:
            run = replace(run, claimed_at=None, beat_at=None, stalled_since=None, last_sign=None)
        until = variable_of(job, UNTIL) or None
        finished = run.finished or _has_done(head, until, launch)
        return replace(
            run,
            finished=finished and launch == last,
            until=None if run.finished else until,
            stop=stop.reason if stop is not None else None,
        )


def _lost_owner(job: ManagedJob, head: Head | None) -> bool:
    """Return whether the owner's job has lost its controller. The owner may still be at work."""
    if job.status != "FAILED_CONTROLLER" or head is None or head.owner is None:
        return False
    return launch_id_of(job) == head.owner.launch_id


def _has_done(head: Head, until: str | None, launch: str | None) -> bool:
    """Return whether the stage `until` was done by a machine of the launch.

    What is older may have been done for other settings, and be done again now.
    """
    since = [claim.at for claim in head.claims if claim.owner.launch_id == launch]
    record = head.stages.get(until) if until is not None else None
    return record is not None and bool(since) and record.at >= min(since)


_number = itertools.count()


def log_finding(state: RunState, look: Look, finding: Finding, done: Sequence[str]) -> None:
    """Record in the run's events what was done and why. If the store is down, record nothing."""
    if look.head is None:
        return
    at = state.clock.now()
    event = {
        "event": "watch",
        "epoch": look.head.epoch,
        "at": at,
        "what": finding.what,
        "why": finding.why,
        "done": list(done),
    }
    # The owner of that epoch numbers its own events, so these need other names. Names order events.
    name = f"watch-{int(1000 * at):014d}-{next(_number):06d}-{uuid.uuid4().hex}"
    key = state.key(f"events/{look.head.epoch}/{name}.jsonl")
    with contextlib.suppress(StoreError):
        state.store.write(key, (json.dumps(event) + "\n").encode())
        state.store.flush()
