"""The work that a rental with a deadline has left, and on which machines it could be done."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from pion.errors import BadInput
from pipeline.base.read_job import read_job
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.rent.deadline.on_demand import on_demand_machines
from pipeline.rent.deadline.terms import measured_in
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import MACHINES, machines_of
from pipeline.rent.managed.recorded_task import recorded_task, variable_of
from pipeline.rent.managed.seen import Work
from pipeline.rent.plan.bench_speeds import bench_results
from pipeline.rent.plan.past_speeds import past_speeds
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.metrics import read_events
from pipeline.state.recorded_job import recorded_job
from pipeline.state.run_state import RunState

# Speeds, boots and saves are measured again after so many seconds.
MEASURE_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """What can be requested: machines of both markets, for tasks like that of the job `like`."""

    like: ManagedJob
    machines: SkyYaml
    work: Work
    of_job: str | None  # the digest of the run's job file; None before the first claim
    at: float  # by the monotonic clock


class DeadlineWork:
    """Reads the plan of a rental, and reads it again when it may have changed."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._plan: Plan | None = None

    def read(self, look: Look) -> Plan | None:
        """Return the plan; None if the newest job was not launched with a deadline.

        Raises BadInput if the run's job can't be read here.
        """
        like = look.sky.job  # an older one may be of other machines, before a hop
        if like is None or not variable_of(like, MACHINES):
            return None
        now, of_job = self._state.clock.monotonic(), look.head.job if look.head else None
        plan = self._plan
        known = plan is not None and (plan.like.id, plan.of_job) == (like.id, of_job)
        if plan is not None and (look.stale or (known and now - plan.at < MEASURE_SECONDS)):
            return plan
        machines = machines_of(like)
        assert machines is not None
        job = self._job(look, like)
        self._plan = Plan(like, machines, self._work(look, job, machines), of_job, now)
        return self._plan

    def _job(self, look: Look, like: ManagedJob) -> Job:
        job = recorded_job(self._state, look.head) if look.head is not None else None
        if job is not None:
            return job
        path = variable_of(like, "JOB") or ""
        if isinstance(folder := recorded_task(like).get("workdir"), str):
            path = str(Path(folder, path))
        try:
            return read_job(path, shlex.split(variable_of(like, "OVERRIDES") or ""))
        except BadInput as error:
            raise BadInput(
                f"the deadline is not kept until a machine has claimed the run, because the job "
                f"can't be read here ({error}). Run `pion watch` in the folder of `pion launch`"
            ) from error

    def _work(self, look: Look, job: Job, machines: SkyYaml) -> Work:
        found = on_demand_machines(
            job, machines, look.head, speeds=past_speeds(job), bench=bench_results(())
        )
        events = read_events(self._state.store, self._state.name) if look.head is not None else []
        return Work(job, digest_job(job), tuple(found), measured_in(events))
