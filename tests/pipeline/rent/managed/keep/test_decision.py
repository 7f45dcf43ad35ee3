"""How much work is left, and when a child process times on-demand machines again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from pipeline.job import Job
from pipeline.job.digest import digest_job, model_inputs
from pipeline.machine.child_process import in_child
from pipeline.rent.deadline.times import Measured, OnDemand
from pipeline.rent.managed.keep import decision
from pipeline.rent.managed.keep.decision import (
    MEASURE_SECONDS,
    PRICE_SECONDS,
    Plan,
    read_plan,
    time_machines,
    with_work_left,
)
from pipeline.rent.managed.look.diagnose import JobView
from pipeline.rent.managed.look.look import Look
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.recorded_task import machines_of
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.head import ClaimRecord, Head
from pipeline.state.shared.speeds import PastSpeed, keep_train_speed
from tests.pipeline.rent.managed.day import MIXED
from tests.support.light_run import JOB, save_checkpoint
from tests.support.states import read, someone
from tests.support.two_markets import launched_on_spot


def test_a_silent_owner_is_taken_to_have_worked_on_until_its_next_save(sky_home):
    machines = read_sky_yaml(sky_home.yaml())
    job = Job.model_validate(JOB)
    candidate, seconds = machines.candidates[0], dict.fromkeys(job.train_stages, 5000.0)
    machine = OnDemand(candidate, seconds, {}, 0.4, True, "")
    task = yaml.safe_dump({"envs": {"PION_LAUNCH_ID": "l", "PION_SPOT": "1"}, "run": "true"})
    managed = ManagedJob(7, "pion-demo", "RUNNING", task=task)
    owner = someone(launch_id="l")
    head = Head(epoch=1, owner=owner, claims=(ClaimRecord(1, 0.0, owner),))

    digests, measured = digest_job(job), Measured()
    plan = Plan(managed, machines, job, digests, [machine], (), 0.0, measured, None, at=0.0)

    def left(age):
        status = {"heartbeat_age": age, "progress": None}
        look = Look(head, (JobView(managed),), 9e9, status)
        return with_work_left(plan, look, lag=30.0)[0].work or 0.0

    assert left(0.0) - left(10.0) == 10.0
    assert left(0.0) - left(3600.0) == 30.0


# ---------------------------------------------------------------- the times of on-demand machines


@pytest.fixture
def rental(sky_home, time):
    return launched_on_spot(read_sky_yaml(sky_home.yaml(MIXED)), time)


@pytest.fixture
def asked(monkeypatch):
    """What children are asked. This process answers."""
    questions = []

    def ask(work, *values):
        questions.append(values)
        return work(*values)

    monkeypatch.setattr(decision, "in_child", ask)
    monkeypatch.setattr(decision, "sys", SimpleNamespace(modules={}))  # torch is not loaded
    return questions


def plan_of(run, rental, known=None):
    look = Look(read(run), (JobView(rental),), run.clock.now())
    return read_plan(run, look, known)


def measured(run, time, tokens_per_second):
    """Let a past run have trained this model on an A40."""
    job = Job.model_validate(JOB)
    lengths = (job.seq_len(stage) for stage in job.train_stages)
    for seq_len in lengths:
        speed = PastSpeed("past", time.time, "NVIDIA A40", seq_len, tokens_per_second)
        keep_train_speed(run.store, model_inputs(job.model_config_resolved()), speed)


@pytest.mark.soak  # a child imports torch, and traces
def test_a_child_times_the_machines_as_this_process_does(run, rental):
    values = Job.model_validate(JOB), machines_of(rental), run.read(), []
    here = time_machines(*values)
    assert [machine.candidate.gpu for machine in here] == ["RTXA6000", "A40"]
    assert all(machine.work for machine in here)
    assert in_child(time_machines, *values) == here


def test_the_same_question_is_asked_again_only_because_prices_change(run, rental, time, asked):
    plan = plan_of(run, rental)
    for _ in range(int(PRICE_SECONDS / MEASURE_SECONDS) - 1):
        time.sleep(MEASURE_SECONDS)
        plan, before = plan_of(run, rental, plan), plan
        assert plan.at > before.at, "what the run has measured was read again"
        assert plan.on_demand == before.on_demand
    assert len(asked) == 1
    time.sleep(MEASURE_SECONDS)
    plan_of(run, rental, plan)
    assert len(asked) == 2


def test_a_job_that_replaces_another_asks_nothing_new(run, rental, asked):
    plan = plan_of(run, rental)
    assert plan_of(run, replace(rental, id=rental.id + 1), plan).on_demand == plan.on_demand
    assert len(asked) == 1


def test_the_work_that_is_left_is_up_to_date_although_the_times_are_remembered(
    run, rental, time, asked
):
    plan = plan_of(run, rental)
    digests = digest_job(Job.model_validate(JOB))
    claim = claim_run(run, someone())
    save_checkpoint(claim, "sft", 9, digests.stages["sft"])
    claim.release()
    time.sleep(MEASURE_SECONDS)
    later = plan_of(run, rental, plan)
    assert 0 < (later.on_demand[0].work or 0) < (plan.on_demand[0].work or 0)
    assert len(asked) == 1


def test_what_the_times_depend_on_is_asked_again(run, rental, time, asked):
    plan = plan_of(run, rental)
    measured(run, time, 1000.0)
    time.sleep(MEASURE_SECONDS)
    slow = plan_of(run, rental, plan)
    measured(run, time, 2000.0)
    time.sleep(MEASURE_SECONDS)
    fast = plan_of(run, rental, slow)
    assert (slow.on_demand[1].work or 0) == pytest.approx(2 * (fast.on_demand[1].work or 0))
    assert len(asked) == 3


def test_other_machines_are_asked_about(run, rental, sky_home, time, asked):
    plan = plan_of(run, rental)
    others = read_sky_yaml(sky_home.yaml(MIXED.replace("RTXA6000", "RTXA4000")))
    hopped = replace(launched_on_spot(others, time), id=rental.id + 1)
    assert [m.gpu for m in plan_of(run, hopped, plan).on_demand] == ["RTXA4000", "A40"]
    assert len(asked) == 2
