"""How much work is left for the decision about the next machine."""

from __future__ import annotations

import yaml

from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.rent.deadline.times import Measured, OnDemand
from pipeline.rent.managed.keep.decision import Plan, Timed, with_work_left
from pipeline.rent.managed.look.diagnose import RunView, SkyView
from pipeline.rent.managed.look.look import JobLook, Look
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.head import ClaimRecord, Head
from tests.pipeline.rent.conftest import SkyHome
from tests.support.light_run import JOB
from tests.support.states import someone


def test_a_silent_owner_is_taken_to_have_worked_on_until_its_next_save(sky_home: SkyHome) -> None:
    machines = read_sky_yaml(sky_home.yaml())
    job = Job.model_validate(JOB)
    candidate, seconds = machines.candidates[0], dict.fromkeys(job.train_stages, 5000.0)
    machine = OnDemand(candidate, seconds, {}, 0.4, True, "")
    task = yaml.safe_dump({"envs": {"PION_LAUNCH_ID": "l", "PION_SPOT": "1"}, "run": "true"})
    managed = ManagedJob(7, "pion-demo", "RUNNING", task=task)
    owner = someone(launch_id="l")
    head = Head(epoch=1, owner=owner, claims=(ClaimRecord(1, 0.0, owner),))

    timed = Timed((), 0.0, [machine])
    plan = Plan(managed, machines, job, digest_job(job), [machine], timed, Measured(), None, 0.0)
    followed = JobLook(SkyView(managed), RunView())

    def left(age: float) -> float:
        status = {"heartbeat_age": age, "progress": None}
        look = Look(head, (followed,), 9e9, status)
        return with_work_left(plan, look, lag=30.0)[0].work or 0.0

    assert left(0.0) - left(10.0) == 10.0
    assert left(0.0) - left(3600.0) == 30.0
