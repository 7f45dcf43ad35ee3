"""A rental as a watcher sees it, and what happens to it while it is watched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.rent.managed.diagnose import Place
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.provider import Provider
from pipeline.state.claim import Claim
from tests.pipeline.rent.managed.test_diagnose import JOB
from tests.support.clock import FakeClock


class Cloud:
    """SkyPilot and RunPod as a watcher sees them: one job, its pods, and what was ordered."""

    def __init__(self) -> None:
        self.jobs = [JOB]
        self.listed: list[Pod] = [self.pod("a", "RUNNING")]
        self.terminated: list[str] = []
        self.cancelled: list[int] = []
        self.submitted: list[Any] = []
        self.only: Place | None = None
        self.down = False

    def pod(self, name: str, status: str, job_id: int = 7, created: float | None = None) -> Pod:
        named = f"{cluster_name(JOB.name, job_id)}-0123abcd-head"
        return Pod(name, named, status, "A40", 0.36, created=created)

    def provider(self) -> Provider:
        return Provider(
            managed_jobs=self.managed_jobs,
            list_pods=lambda: self.listed,
            terminate_pod=self.terminate,
            cancel=self.cancel,
            make_again=self.make_again,
            submit=self.submit,
        )

    def managed_jobs(self, name: str) -> list[ManagedJob]:
        if self.down:
            raise PionError("SkyPilot could not list the managed jobs.")
        return sorted((j for j in self.jobs if j.name == name), key=lambda j: -j.id)

    def terminate(self, pod: str) -> None:
        self.terminated.append(pod)
        self.listed = [p for p in self.listed if p.id != pod]

    def cancel(self, ids: Collection[int]) -> None:
        self.cancelled += ids
        self.jobs = [
            dataclasses.replace(j, status="CANCELLED") if j.id in ids else j for j in self.jobs
        ]

    def make_again(self, job: ManagedJob, avoid: Collection[Place]) -> Any:
        if self.only is not None and self.only in avoid:
            raise BadInput("the YAML allows nothing but that")
        return job.id, set(avoid)

    def submit(self, task: Any, name: str) -> int:
        assert not any(job.live for job in self.jobs)  # never two machines at a time
        self.submitted.append(task)
        new = max(job.id for job in self.jobs) + 1
        self.jobs.append(dataclasses.replace(JOB, id=new))
        self.listed = [self.pod("b", "RUNNING", new)]
        return new

    def now(self, status: str, **changes: Any) -> None:
        self.jobs = [dataclasses.replace(self.jobs[-1], status=status, **changes)]


def failing_at_first(cloud: Cloud) -> Callable[[Any, str], int]:
    """A way to submit that works at the fourth attempt."""
    failures = [PionError("SkyPilot could not submit: timed out") for _ in range(3)]

    def submit(task: Any, name: str) -> int:
        if failures:
            raise failures.pop()
        return cloud.submit(task, name)

    return submit


def lost_controller(cloud: Cloud, submit: Callable[[Any, str], int]) -> Provider:
    """A job that is started anew at the first look, by that means."""
    cloud.now("FAILED_CONTROLLER")
    return dataclasses.replace(cloud.provider(), submit=submit)


def beat(claim: Claim, **status: Any) -> None:
    claim.heartbeat.report(**status)
    claim.heartbeat.beat()


def during(time: FakeClock, *events: Callable[[], None]) -> None:
    """After each look one of the events happens; after the last, nothing more does."""
    left = list(events)
    time.during_sleep = lambda: left.pop(0)() if left else None


def succeed(cloud: Cloud) -> Callable[[], None]:
    return lambda: cloud.now("SUCCEEDED")


def succeed_after(cloud: Cloud, time: FakeClock, seconds: float) -> None:
    """The job is done that long from now, whatever happens to it."""
    start = time.time
    time.during_sleep = lambda: cloud.now("SUCCEEDED") if time.time - start > seconds else None


def without_its_secrets(provider: Provider) -> Provider:
    """The same, where a job's secrets are not set, so that it can't be submitted again."""

    def make_again(job: ManagedJob, avoid: Collection[Place]) -> Any:
        raise BadInput("HF_TOKEN must be set in the environment")

    return dataclasses.replace(provider, make_again=make_again)
