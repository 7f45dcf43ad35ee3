"""What can continue under a version of pion whose stages have new fields."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.job.digest import Inputs, digest_job
from pipeline.run.stage_plan import (
    Refusal,
    first_stale,
    fork_may_continue,
    plan_stages,
    stage_inputs,
    steps_may_be_raised,
)
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


def read_inputs(stage: str, digest: str) -> Inputs | None:
    return stage_inputs(stage, TODAY) if digest == TODAY.stages[stage] else None


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
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
    change: dict[str, Any], raised: bool, forked: bool
) -> None:
    job = LaterJob.model_validate(tiny_dict(**change))
    digests = digest_job(job)
    stale = first_stale(plan_stages(job, digests, FORKED))
    assert stale is not None
    question = (job, stale, digests, FORKED, read_inputs)
    assert steps_may_be_raised(*question) is raised
    assert fork_may_continue(*question) is forked


def test_a_refusal_shows_what_the_old_run_computed() -> None:
    job = LaterJob.model_validate(tiny_dict(pretrain__teacher=None, model__gate=True))
    digests = digest_job(job)
    plans = plan_stages(job, digests, FORKED)
    stale = first_stale(plans)
    assert stale is not None
    text = Refusal(job, "job.yaml", digests, read_inputs).text(stale, plans)
    assert 'pretrain.teacher: "none" → (not set)' in text
    assert "model.gate: false → true" in text
