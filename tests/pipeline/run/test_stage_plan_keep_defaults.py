"""A run that has begun keeps the warm-up that followed from its steps when it began."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.run.stage_plan import stage_inputs, work_left
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.training.train_request import TrainRequest
from tests.pipeline.run.test_stage_plan import saved_at
from tests.support.jobs import tiny_dict


def job_of(steps: int, **changes: object) -> Job:
    """A job that names no warm-up; the default is 1,000 steps, or a tenth."""
    fields = tiny_dict(pretrain__steps=steps, sft=None, **changes)
    if "pretrain__warmup_steps" not in changes:
        del fields["pretrain"]["warmup_steps"]
    return Job.model_validate(fields)


@pytest.fixture
def begun(tmp_path: Path) -> RunState:
    """A run of 60 steps, with 6 steps of warm-up, that has saved its third step."""
    return run_of(job_of(60), "pretrain", tmp_path)


def run_of(job: Job, stage: str, folder: Path) -> RunState:
    """A run that has saved the third step of that stage."""
    run = RunState(FileStore(folder), "tiny")
    claim = claim_run(run, Owner.me())
    digests = digest_job(job)
    inputs = {"format": 1, "inputs": stage_inputs(stage, digests)}
    run.write_stage(stage, digests.stages[stage], inputs)
    (entry,) = saved_at(job, stage, 3).checkpoints
    claim.commit(lambda head: head.with_checkpoint(entry))
    claim.release()
    return run


def test_more_steps_do_not_change_the_warm_up(begun: RunState) -> None:
    longer = job_of(5000)
    assert longer.section("pretrain").warmup_steps == 1000
    left = work_left(longer, begun)
    assert left.raised is not None
    assert longer.section("pretrain").total_warmup_steps == 6


def test_a_warm_up_that_the_job_names_counts(begun: RunState) -> None:
    named = job_of(5000, pretrain__warmup_steps=500)
    with pytest.raises(Exception, match=r"pretrain.warmup_steps: 6 → 500"):
        work_left(named, begun)


def test_a_stage_that_is_redone_has_the_default_of_its_steps(begun: RunState) -> None:
    longer = job_of(5000)
    work_left(longer, begun, redo="pretrain")
    assert longer.section("pretrain").total_warmup_steps == 1000


def test_a_few_steps_of_passes_have_the_same_warm_up_after_a_resume(tmp_path: Path) -> None:
    def job() -> Job:
        fields = tiny_dict(sft__epochs=10)
        for name in ("steps", "warmup_steps"):
            fields["sft"].pop(name, None)
        return Job.model_validate(fields | {"sft": fields["sft"] | {"global_batch": 4}})

    run, resumed = run_of(job(), "sft", tmp_path), job()
    work_left(resumed, run)
    request = TrainRequest.of(resumed, digest_job(resumed), Owner.me(), ["sft"])
    section = request.load_job().section("sft")
    section.know_rows(24)
    assert (section.total_steps, section.total_warmup_steps) == (60, 6)
