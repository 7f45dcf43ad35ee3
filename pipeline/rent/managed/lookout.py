"""Look at a rented run repeatedly: ask SkyPilot, RunPod and the run's store, and remember."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.rent.managed.attempts import AttemptMemory
from pipeline.rent.managed.diagnose import RunView, SkyView
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.memory import CostMemory, PodMemory, StepKey, StepMemory
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.place import Place, place_of
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.progress import Progress
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.recorded_task import launch_id_of, until_of_job
from pipeline.rent.managed.unclaimed_costs import LostPods
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.run_status import is_finished, run_status
from pipeline.state.stop_requests import pending_stop


@dataclass(frozen=True)
class Look:
    """What SkyPilot, the provider and the store said at one moment."""

    head: Head | None
    sky: SkyView
    run: RunView
    progress: Progress


class Lookout:
    """Looks at the rental called `name` of a run.

    `job_id` is the managed job that is followed: the newest live job of that name.
    """

    def __init__(self, state: RunState, name: str, job_id: int, provider: Provider) -> None:
        self.state, self.name, self.job_id = state, name, job_id
        self.attempts = AttemptMemory(state)
        self._provider = provider
        self._pods = PodMemory()
        self._lost = LostPods(state, name)
        self._steps = StepMemory()
        self._costs = CostMemory(state)

    def look(self) -> Look:
        """Ask SkyPilot, RunPod and the store. Raises PionError if one of them can't be asked."""
        # Pods before jobs: SkyPilot then knows the job of every listed pod.
        pods = self._provider.list_pods()
        job = self._newest_job()
        now = self.state.clock.now()
        if pods is not None:
            self._lost.note(job, pods, now)
        head = self.state.read()
        status = run_status(self.state, head, now) if head is not None else None
        pods_of_job = self._of_job(pods, job)
        self._pods.note(job, pods_of_job, now)
        self.attempts.note(job, head, now)
        sky = SkyView(
            job,
            pods_of_job,
            gone_since=self._pods.gone_since,
            pod_since=self._pods.newest_since(pods_of_job),
            attempts=tuple(self.attempts.found),
            place=self._place(job),
        )
        run = RunView() if head is None or status is None else self._run_view(head, status, now)
        if head is not None and job is not None:
            run = self._of_this_launch(run, head, job)
        dollars = self._costs.dollars(head, job, self._lost.booting, now)
        return Look(head, sky, run, Progress(now, job, status, dollars))

    def _newest_job(self) -> ManagedJob | None:
        jobs = self._provider.managed_jobs(self.name, with_task=True)
        self.job_id = next((job.id for job in jobs if job.live), self.job_id)
        return next((job for job in jobs if job.id == self.job_id), None)

    def _of_job(self, pods: Sequence[Pod] | None, job: ManagedJob | None) -> tuple[Pod, ...] | None:
        """Return the job's pods; None if RunPod was not asked, or the job is on another cloud."""
        if pods is None or job is None or (job.cloud or "RunPod").lower() != "runpod":
            return None
        cluster = cluster_name(self.name, job.id)
        return tuple(pod for pod in pods if pod.belongs_to(cluster))

    def _place(self, job: ManagedJob | None) -> Place | None:
        if job is not None and job.place:
            return place_of(job)
        return self.attempts.found[-1].place if self.attempts.found else None

    def _run_view(self, head: Head, status: dict[str, Any], now: float) -> RunView:
        age = status["heartbeat_age"]
        beat_at = None if age is None else now - age
        progress = status["progress"] or {}
        step = StepKey(head.epoch, progress.get("stage"), progress.get("step"))
        return RunView(
            finished=is_finished(self.state, head),
            stop=status["stop"]["reason"] if status["stop"] else None,
            claimed_at=head.claims[0].at if head.owner is not None else None,
            beat_at=beat_at,
            stalled_since=self._steps.stalled_since(beat_at, step, now),
            last_sign=now - status["last_commit_age"],
            heartbeats=status["heartbeats"],
        )

    def _of_this_launch(self, run: RunView, head: Head, job: ManagedJob) -> RunView:
        """Leave out what concerns another launch: its request to stop, or that it has finished.

        A hop asks every launch to stop except the one that takes over the run. A finished run may
        be launched again with more to do. A rental that ends after a stage is finished before the
        run is.
        """
        last = head.claims[0].owner.launch_id if head.claims else None
        launch = launch_id_of(job) or last
        stop = pending_stop(self.state, launch_id=launch) if run.stop is not None else None
        until = until_of_job(job)
        finished = run.finished or _has_done(head, until, launch)
        return replace(
            run,
            finished=finished and launch == last,
            until=None if run.finished else until,
            stop=stop.reason if stop is not None else None,
        )


def _has_done(head: Head, until: str | None, launch: str | None) -> bool:
    """Return whether the stage `until` was done by a machine of the launch.

    What is older may have been done for other settings, and be done again now.
    """
    since = [claim.at for claim in head.claims if claim.owner.launch_id == launch]
    record = head.stages.get(until) if until is not None else None
    return record is not None and bool(since) and record.at >= min(since)
