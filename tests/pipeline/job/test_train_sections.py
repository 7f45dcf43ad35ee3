"""How many steps a stage has, and how many of them are its warm-up."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.job.train_sections import settings_of
from tests.support.jobs import tiny_dict, tiny_job


def without_warmup(**changes: object) -> Job:
    fields = tiny_dict(**changes)
    for stage in ("pretrain", "sft"):
        del fields[stage]["warmup_steps"]
    return Job.model_validate(fields)


@pytest.mark.parametrize(
    ("steps", "warmup"), [(60, 6), (1000, 100), (1001, 1000), (5000, 1000), (1, 0)]
)
def test_a_short_run_warms_up_for_a_tenth_of_its_steps(steps: int, warmup: int) -> None:
    job = without_warmup(pretrain__steps=steps)
    assert job.section("pretrain").warmup_steps == warmup
    assert settings_of(job.section("pretrain")).warmup_steps == warmup
    # A job that could run before has the digest that it had.
    given = tiny_job(pretrain__steps=steps, pretrain__warmup_steps=warmup)
    assert digest_job(job).stages["pretrain"] == digest_job(given).stages["pretrain"]


def test_a_warm_up_that_is_given_is_never_shortened() -> None:
    with pytest.raises(ValidationError, match="warmup_steps: 1000 must be below steps 60"):
        tiny_job(pretrain__steps=60, pretrain__warmup_steps=1000)


def epochs(passes: float, **changes: object) -> Job:
    return tiny_job(sft__steps=None, sft__epochs=passes, **changes)


@pytest.mark.parametrize(
    ("passes", "rows", "steps"), [(3, 100, 75), (3, 101, 76), (0.5, 100, 13), (1, 1, 1)]
)
def test_passes_over_the_rows_give_the_steps(passes: float, rows: int, steps: int) -> None:
    job = epochs(passes, sft__warmup_steps=0)
    section = job.section("sft")
    assert not section.steps_are_known
    digest = digest_job(job).stages["sft"]
    section.know_rows(rows)
    assert section.total_steps == settings_of(section).steps == steps
    assert steps * section.global_batch >= passes * rows
    # The rows follow from the data, which the digest covers.
    assert digest_job(job).stages["sft"] == digest
    assert digest != digest_job(epochs(passes + 1, sft__warmup_steps=0)).stages["sft"]


def test_a_warm_up_must_fit_into_the_steps_that_follow_from_the_rows() -> None:
    section = epochs(1, sft__warmup_steps=10).section("sft")
    with pytest.raises(
        BadInput, match=r"must be below the 3 steps that the data gives \(12 rows\)"
    ):
        section.know_rows(12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sft__epochs": 2}, "epochs: steps is given too"),
        ({"sft__steps": None}, "sft.steps: missing: give steps, or epochs"),
        ({"sft__steps": None, "sft__epochs": 0}, "greater than 0"),
        ({"pretrain__steps": None}, "valid integer"),
        ({"pretrain__epochs": 2}, "Extra inputs"),
    ],
)
def test_a_stage_needs_steps_or_passes(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        tiny_job(**changes)
