"""Batch and rates of a run of another size or length, by rule."""

from __future__ import annotations

import math

import pytest

from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.ladder.rule import round_batch, settings_by_rule
from tests.paths import JOBS

OWN = 22_500 * 64 * 2048  # the tokens of jobs/pion-small.yaml


def small(*overrides: str) -> Job:
    return load_job(JOBS / "pion-small.yaml", overrides)


def test_the_same_size_and_length_keep_everything() -> None:
    assert settings_by_rule(small(), 640, OWN) == {
        "steps": 22_500,
        "global_batch": 64,
        "lr": 3e-4,
        "min_lr": 3e-5,
    }


def test_the_batch_grows_with_tokens_and_the_rates_with_its_root() -> None:
    found = settings_by_rule(small(), 640, 10 * OWN)
    assert found["global_batch"] == 160  # 64 · 10^0.383 is 155
    assert found["lr"] == pytest.approx(3e-4 * math.sqrt(160 / 64), rel=0.01)
    assert found["min_lr"] == pytest.approx(3e-5 * math.sqrt(160 / 64), rel=0.01)
    assert found["steps"] == 10 * OWN // (160 * 2048)


def test_a_batch_changes_no_rate_by_more_than_twice() -> None:
    assert settings_by_rule(small(), 640, 1000 * OWN)["lr"] == 6e-4
    assert settings_by_rule(small(), 640, OWN / 1000)["lr"] == 1.5e-4


def test_adamw_takes_smaller_steps_in_a_wider_model_and_muon_does_not() -> None:
    muon = small("pretrain.optimizer=muon", "pretrain.muon_lr=0.02", "pretrain.embedding_lr=0.1")
    found = settings_by_rule(muon, 2560, OWN)
    assert (found["lr"], found["embedding_lr"], found["muon_lr"]) == (1.5e-4, 0.05, 0.02)
    assert "head_lr" not in found


def test_a_short_run_warms_up_for_a_tenth_of_its_steps() -> None:
    found = settings_by_rule(small(), 640, OWN / 100)
    assert found["warmup_steps"] == found["steps"] // 10
    few = settings_by_rule(small("pretrain.warmup_steps=40"), 640, OWN / 100)
    assert "warmup_steps" not in few


def test_a_run_of_a_recipe_has_the_settings_by_rule_and_not_those_of_the_recipe() -> None:
    path = JOBS / "pion2-small.yaml"
    by_rule = settings_by_rule(load_job(path), 256, 10**8)
    changes = [f"pretrain.{name}={value}" for name, value in by_rule.items()]
    run = load_job(path, ["model.d_model=256", *changes]).pretrain
    assert {name: getattr(run, name) for name in by_rule} == by_rule
    assert by_rule.keys() >= {"lr", "min_lr", "embedding_lr", "vector_lr", "warmup_steps"}


@pytest.mark.parametrize(
    ("batch", "rounded"),
    [(0.2, 1), (1.4, 1), (3.6, 4), (6.6, 7), (9.1, 10), (57, 56), (61, 64), (155, 160), (300, 320)],
)
def test_a_batch_has_few_binary_digits(batch: float, rounded: int) -> None:
    assert round_batch(batch) == rounded
