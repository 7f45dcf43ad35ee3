"""What can continue under a version of pion whose stages have new fields."""

import pytest

from pipeline.job.digest import digest_job
from pipeline.run.stage_plan import ChangedStage, first_stale, plan_stages, stage_inputs
from pipeline.state.head import CheckpointEntry, Head
from tests.support import later_version
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.later_version import LaterJob

TODAY = digest_job(tiny_job())
KEY = "checkpoints/pretrain/5-1"
FORKED = Head(
    checkpoints=(CheckpointEntry("pretrain", 5, 1, TODAY.stages["pretrain"], KEY, 0.0, 1, ""),),
    forked=KEY,
)


def changed(job, plans):
    """Return the first stage, trained today, that the job changes."""
    stale = first_stale(plans)
    assert stale.old_digest == TODAY.stages[stale.stage]
    return ChangedStage(job, digest_job(job), stale, stage_inputs(stale.stage, TODAY))


@pytest.fixture(autouse=True)
def later(monkeypatch):
    later_version.install(monkeypatch)


@pytest.mark.parametrize(
    ("change", "raised", "forked"),
    [
        ({"pretrain__steps": 40}, True, True),
        ({"pretrain__steps": 40, "pretrain__z_loss": 0.0}, True, True),
        ({"pretrain__steps": 40, "pretrain__z_loss": 0.1}, False, True),  # of the schedule
        ({"pretrain__steps": 40, "pretrain__teacher": None}, False, False),
        ({"pretrain__steps": 40, "model__gate": True}, False, False),
        ({"pretrain__steps": 40, "data__shuffle": "shards"}, False, False),
    ],
)
def test_raised_steps_and_forks_read_an_omitted_field_as_its_value_of_before(
    change, raised, forked
):
    job = LaterJob.model_validate(tiny_dict(**change))
    stage = changed(job, plan_stages(job, digest_job(job), FORKED))
    assert stage.steps_may_be_raised(FORKED) is raised
    assert stage.fork_may_continue(FORKED) is forked


def test_a_refusal_shows_what_the_old_run_computed():
    job = LaterJob.model_validate(tiny_dict(pretrain__teacher=None, model__gate=True))
    plans = plan_stages(job, digest_job(job), FORKED)
    text = changed(job, plans).refusal(plans, "job.yaml")
    assert 'pretrain.teacher: "none" → (not set)' in text
    assert "model.gate: false → true" in text
