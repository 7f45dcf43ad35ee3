"""How a machine computes a stage: what the job says, what fits, and what a checkpoint recorded."""

import dataclasses
from typing import Any

import pytest

from pipeline.training.compute_plan import choose_plan
from pipeline.training.group import Group
from tests.support.jobs import tiny_job


def recorded(**changes: Any) -> dict[str, Any]:
    """Return the plan of the tiny job on this machine, as a checkpoint records it."""
    plan = choose_plan(tiny_job(), "pretrain", Group(), None)
    return dataclasses.replace(plan, **changes).to_dict()


def test_what_the_job_leaves_open_stays_as_the_checkpoint_recorded_it() -> None:
    before = recorded(micro_batch=1, recompute=True)
    plan = choose_plan(tiny_job(), "pretrain", Group(), before)
    assert (plan.micro_batch, plan.recompute) == (1, True)


@pytest.mark.parametrize("changed", [{"device": "cuda:7"}, {"threads": 99}, {"world_size": 7}])
def test_a_plan_of_other_hardware_is_not_used_again(changed: dict[str, Any]) -> None:
    before = recorded(micro_batch=1, recompute=True, **changed)
    fresh = choose_plan(tiny_job(), "pretrain", Group(), None)
    assert choose_plan(tiny_job(), "pretrain", Group(), before) == fresh


def test_what_the_job_asks_for_wins_over_the_checkpoint() -> None:
    job = tiny_job(hardware__micro_batch=2, hardware__recompute=False)
    plan = choose_plan(job, "pretrain", Group(), recorded(micro_batch=1, recompute=True))
    assert (plan.micro_batch, plan.recompute) == (2, False)


def test_a_plan_of_a_later_version_is_not_used_again() -> None:
    before = recorded(micro_batch=1) | {"colour": "blue"}
    fresh = choose_plan(tiny_job(), "pretrain", Group(), None)
    assert choose_plan(tiny_job(), "pretrain", Group(), before) == fresh
