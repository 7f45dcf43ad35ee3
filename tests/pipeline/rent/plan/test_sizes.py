"""The models that money can choose from: presets, each with a job and its settings by rule."""

import shutil

import pytest

from pion.errors import BadInput
from pipeline.job.file import load_job
from pipeline.rent.plan.sizes import presets_of, round_batch, settings_by_rule, sizes_of
from tests.paths import JOBS, REPOSITORY
from tests.pipeline.rent.plan.rows import rows_of
from tests.support.published_models import write_published

PION = ["pion-nano", "pion-micro", "pion-small", "pion-base", "pion-large", "pion-xl"]
PION2 = ["pion2-pico", *(name.replace("pion", "pion2") for name in PION)]
MAX = [name.replace("pion2", "pion2-max") for name in PION2]
SMALL, SMALL2, DEMO = (str(JOBS / f"{name}.yaml") for name in ("pion-small", "pion2-small", "demo"))


def names(path, *overrides):
    return [size.name for size in sizes_of(path, overrides)]


def test_without_a_job_each_preset_of_max_has_its_own(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    sizes = sizes_of(None, ["store=elsewhere"])
    assert [size.name for size in sizes] == MAX[1:]
    assert [size.path for size in sizes] == [f"jobs/{name}.yaml" for name in MAX[1:]]
    assert {size.job.store for size in sizes} == {"elsewhere"}
    assert all(size.reference is size.job for size in sizes)
    params = [size.cost.all_params for size in sizes]
    assert params == sorted(params)


def test_in_another_folder_its_own_jobs_are_taken_and_those_of_pion_if_it_has_none(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert names(None) == MAX[1:]
    (tmp_path / "jobs").mkdir()
    shutil.copy(JOBS / "pile_tokenizer.json", tmp_path / "jobs")
    for name in ("pion-small", "pion2-small", "pion2-max-small"):
        shutil.copy(JOBS / f"{name}.yaml", tmp_path / "jobs")
        assert names(None) == [name]


def test_a_job_is_trained_at_each_size_of_its_family():
    sizes = sizes_of(SMALL, ["pretrain.lr=1e-3"])
    assert [size.name for size in sizes] == PION
    large = sizes[4]
    assert large.overrides == ("pretrain.lr=1e-3", "model=pion-large")
    config = large.job.model_config_resolved()
    assert (config.d_model, large.reference.model_config_resolved().d_model) == (1024, 640)
    assert load_job(SMALL, large.overrides).model_config_resolved() == config
    assert names(SMALL2) == PION2
    assert names(SMALL2, "model=pion2-max-small") == MAX
    assert "daisy-pico" in presets_of("daisy")
    assert "daisy-pico-tied" not in presets_of("daisy"), "a variant is no size"


def test_the_vocabulary_and_other_fields_of_the_model_stay_and_its_shape_does_not():
    demo = {size.name: size for size in sizes_of(DEMO, [])}
    assert demo["pion2-pico"].overrides == ()
    nano = demo["pion2-nano"]
    config = load_job(DEMO, nano.overrides).model_config_resolved()
    assert (config.vocab_size, config.seq_len, config.d_model) == (2048, 256, 384)
    assert config.values is None
    assert nano.job.data == demo["pion2-pico"].job.data
    model = "model={preset: pion-small, n_heads: 5, n_kv_heads: 1, head_dim: 128, norm_eps: 1e-5}"
    base = next(size for size in sizes_of(SMALL, [model]) if size.name == "pion-base")
    config = base.job.model_config_resolved()
    assert (config.n_heads, config.head_dim, config.norm_eps) == (12, 64, 1e-5)


def test_a_job_that_starts_from_a_trained_model_is_refused(tmp_path):
    model = write_published(tmp_path / "base", "SmolLM2-135M")
    with pytest.raises(BadInput, match="does not pretrain a model from random weights"):
        sizes_of(SMALL, ["tokenizer=null", f"model={{from: {model}}}"])


# ---------------------------------------------------------------- batch and rates by rule


OWN = 22_500 * 64 * 2048  # the tokens of jobs/pion-small.yaml


@rows_of("by_rule")
def test_batch_and_rates_follow_by_rule(row):
    settings = settings_by_rule(
        load_job(SMALL, row.get("job", ())), row["width"], row["times"] * OWN
    )
    expected = row.get("all") or row["some"]
    assert {name: settings.get(name) for name in expected} == expected
    assert "some" in row or settings == expected


def test_a_run_of_a_recipe_has_the_settings_by_rule_and_not_those_of_the_recipe():
    by_rule = settings_by_rule(load_job(SMALL2), 256, 10**8)
    changes = [f"pretrain.{name}={value}" for name, value in by_rule.items()]
    run = load_job(SMALL2, ["model.d_model=256", *changes]).pretrain
    assert {name: getattr(run, name) for name in by_rule} == by_rule
    assert by_rule.keys() >= {"lr", "min_lr", "embedding_lr", "vector_lr", "warmup_steps"}


def test_a_batch_has_few_binary_digits():
    batches = (0.2, 1.4, 3.6, 6.6, 9.1, 57, 61, 155, 300)
    assert [*map(round_batch, batches)] == [1, 1, 4, 7, 10, 56, 64, 160, 320]
