"""Which runs a ladder has: smaller models that every job allows, cheapest first."""

import math

import pytest

from pipeline.base.job_with_base import read_job
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.ladder.grid import Grid, round_batch, rungs_of, settings_by_rule
from pipeline.ladder.law import Point as Result
from pipeline.ladder.law import check_points
from pipeline.ladder.runs import Runs
from tests.paths import JOBS, REPOSITORY


def rungs(name, grid=None):
    path = REPOSITORY / "jobs" / f"{name}.yaml"
    return rungs_of(Runs("ladder", str(path), (), as_json=False), grid or Grid())


@pytest.mark.parametrize(
    "name", ["demo", "demo-daisy", "demo-pilon", "pion-small", "tachyon-tiny", "daisy-280m"]
)
def test_every_family_has_a_ladder_of_jobs_that_are_valid_and_can_be_fitted(name):
    found = rungs(name)
    assert len(found) == 16
    assert [rung.flops for rung in found] == sorted(rung.flops for rung in found)
    check_points([Result(rung.name, rung.macs_per_token, rung.tokens, 1.0) for rung in found])
    own = read_job(REPOSITORY / "jobs" / f"{name}.yaml")
    for rung in (found[0], found[-1]):
        assert rung.job.stages == ["prepare", "pretrain", "evaluate"]
        section = rung.job.section("pretrain")
        assert section.total_steps * section.global_batch * rung.job.data.seq_len == rung.tokens
        config = rung.job.model_config_resolved()
        assert config.head_dim == own.model_config_resolved().head_dim
        assert config.d_model < own.model_config_resolved().d_model


def test_depth_follows_the_width_unless_the_model_names_its_layers():
    assert {rung.shape for rung in rungs("demo-prefer")} == {"64x2", "96x2", "128x3", "192x4"}
    layers = read_job(REPOSITORY / "jobs" / "demo-daisy.yaml").model_config_resolved().n_layers
    assert {rung.shape.partition("x")[2] for rung in rungs("demo-daisy")} == {str(layers)}


def test_all_runs_share_prepared_data():
    own = digest_job(read_job(REPOSITORY / "jobs" / "demo.yaml", ["sft=null"])).data
    assert all(rung.digests.data == own for rung in rungs("demo"))


def test_held_out_runs_come_last_and_are_the_largest_or_beyond_the_grid():
    found = rungs("demo-prefer", Grid(held_out=4))
    assert [rung.held_out for rung in found] == [False] * 12 + [True] * 4
    assert found[12].flops > found[11].flops
    found = rungs("demo-prefer", Grid(beyond=((1.0, 0.5), (0.7, 0.5))))
    assert [rung.shape for rung in found[16:]] == ["192x4", "256x6"]
    assert all(rung.held_out for rung in found[16:])


def test_a_preset_keeps_its_other_fields():
    own = read_job(REPOSITORY / "jobs" / "pion-small.yaml").model_config_resolved()
    config = rungs("pion-small")[0].job.model_config_resolved()
    assert (config.vocab_size, config.seq_len) == (own.vocab_size, own.seq_len)


# ---------------------------------------------------------------- batch and rates by rule


OWN = 22_500 * 64 * 2048  # the tokens of jobs/pion-small.yaml


def small(*overrides):
    return load_job(JOBS / "pion-small.yaml", overrides)


def test_the_same_size_and_length_keep_everything():
    assert settings_by_rule(small(), 640, OWN) == {
        "steps": 22_500,
        "global_batch": 64,
        "lr": 3e-4,
        "min_lr": 3e-5,
    }


def test_the_batch_grows_with_tokens_and_the_rates_with_its_root():
    found = settings_by_rule(small(), 640, 10 * OWN)
    assert found["global_batch"] == 160  # 64 · 10^0.383 is 155
    assert found["lr"] == pytest.approx(3e-4 * math.sqrt(160 / 64), rel=0.01)
    assert found["min_lr"] == pytest.approx(3e-5 * math.sqrt(160 / 64), rel=0.01)
    assert found["steps"] == 10 * OWN // (160 * 2048)


def test_a_batch_changes_no_rate_by_more_than_twice():
    assert settings_by_rule(small(), 640, 1000 * OWN)["lr"] == 6e-4
    assert settings_by_rule(small(), 640, OWN / 1000)["lr"] == 1.5e-4


def test_adamw_takes_smaller_steps_in_a_wider_model_and_muon_does_not():
    muon = small("pretrain.optimizer=muon", "pretrain.muon_lr=0.02", "pretrain.embedding_lr=0.1")
    found = settings_by_rule(muon, 2560, OWN)
    assert (found["lr"], found["embedding_lr"], found["muon_lr"]) == (1.5e-4, 0.05, 0.02)
    assert "head_lr" not in found


def test_a_short_run_warms_up_for_a_tenth_of_its_steps():
    found = settings_by_rule(small(), 640, OWN / 100)
    assert found["warmup_steps"] == found["steps"] // 10
    few = settings_by_rule(small("pretrain.warmup_steps=40"), 640, OWN / 100)
    assert "warmup_steps" not in few


def test_a_run_of_a_recipe_has_the_settings_by_rule_and_not_those_of_the_recipe():
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
def test_a_batch_has_few_binary_digits(batch, rounded):
    assert round_batch(batch) == rounded
