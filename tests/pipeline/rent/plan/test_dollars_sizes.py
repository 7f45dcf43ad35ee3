"""The models that money can choose from: presets, each with a job."""

import shutil

import pytest

from pion.errors import BadInput
from pipeline.job.file import load_job
from pipeline.rent.plan.dollars import presets_of, round_batch, settings_by_rule, sizes_of
from tests.paths import JOBS, REPOSITORY
from tests.support.published_models import write_published

PION = ["pion-nano", "pion-micro", "pion-small", "pion-base", "pion-large", "pion-xl"]
PION2 = ["pion2-pico", *(name.replace("pion", "pion2") for name in PION)]
MAX = [name.replace("pion2", "pion2-max") for name in PION2]
SMALL, DEMO = str(JOBS / "pion-small.yaml"), str(JOBS / "demo.yaml")


def names(sizes):
    return [size.name for size in sizes]


def test_without_a_job_each_preset_of_max_has_its_own(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    sizes = sizes_of(None, ["store=elsewhere"])
    assert names(sizes) == MAX[1:]
    assert [size.path for size in sizes] == [f"jobs/{name}.yaml" for name in MAX[1:]]
    assert {size.job.store for size in sizes} == {"elsewhere"}
    assert all(size.reference is size.job for size in sizes)
    params = [size.cost.all_params for size in sizes]
    assert params == sorted(params)


def test_where_pion_2_has_no_jobs_those_of_pion_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    for name in ("pile_tokenizer.json", "pion-small.yaml"):
        shutil.copy(JOBS / name, tmp_path / "jobs")
    assert names(sizes_of(None, [])) == ["pion-small"]
    for name in ("pion2-small", "pion2-max-small"):
        shutil.copy(JOBS / f"{name}.yaml", tmp_path / "jobs")
        assert names(sizes_of(None, [])) == [name]


def test_in_a_folder_without_jobs_those_of_pions_own_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = sizes_of(None, [])
    assert names(sizes)[0] == "pion2-max-nano"
    assert sizes[0].path == "jobs/pion2-max-nano.yaml"


def test_a_job_is_trained_at_each_size_of_its_family():
    sizes = sizes_of(SMALL, ["pretrain.lr=1e-3"])
    assert names(sizes) == PION
    large = sizes[4]
    assert large.overrides == ("pretrain.lr=1e-3", "model=pion-large")
    assert large.job.model_config_resolved().d_model == 1024
    assert large.reference.model_config_resolved().d_model == 640
    assert load_job(SMALL, large.overrides).model_config_resolved() == (
        large.job.model_config_resolved()
    )


def test_the_vocabulary_and_the_context_of_the_job_stay():
    sizes = sizes_of(DEMO, [])
    own = next(size for size in sizes if size.name == "pion2-pico")
    assert own.overrides == ()
    nano = next(size for size in sizes if size.name.endswith("-nano"))
    config = load_job(DEMO, nano.overrides).model_config_resolved()
    assert (config.vocab_size, config.seq_len, config.d_model) == (2048, 256, 384)
    assert config.values is None
    assert nano.job.data == own.job.data


def test_other_fields_of_the_model_stay_and_its_shape_does_not():
    given = "model={preset: pion-small, n_heads: 5, n_kv_heads: 1, head_dim: 128, norm_eps: 1e-5}"
    base = next(s for s in sizes_of(SMALL, [given]) if s.name == "pion-base")
    config = base.job.model_config_resolved()
    assert (config.n_heads, config.head_dim, config.norm_eps) == (12, 64, 1e-5)


def test_a_pion_2_max_has_sizes_of_its_own():
    small = str(JOBS / "pion2-small.yaml")
    assert names(sizes_of(small, [])) == PION2
    assert names(sizes_of(small, ["model=pion2-max-small"])) == MAX


def test_variants_of_a_preset_are_no_sizes():
    assert "daisy-pico" in presets_of("daisy")
    assert "daisy-pico-tied" not in presets_of("daisy")


def test_a_job_that_starts_from_a_trained_model_is_refused(tmp_path):
    model = write_published(tmp_path / "base", "SmolLM2-135M")
    with pytest.raises(BadInput, match="does not pretrain a model from random weights"):
        sizes_of(SMALL, ["tokenizer=null", f"model={{from: {model}}}"])


# ---------------------------------------------------------------- batch and rates by rule


OWN = 22_500 * 64 * 2048  # the tokens of jobs/pion-small.yaml


MUON = ("pretrain.optimizer=muon", "pretrain.muon_lr=0.02", "pretrain.embedding_lr=0.1")


@pytest.mark.parametrize(
    ("d_model", "times", "overrides", "expected"),
    [
        # The same size and length keep everything.
        (640, 1, [], {"steps": 22_500, "global_batch": 64, "lr": 3e-4, "min_lr": 3e-5}),
        # The batch grows with tokens^0.383, and the rates with its root, at most twice.
        (640, 10, [], {"steps": 90_000, "global_batch": 160, "lr": 4.74e-4, "min_lr": 4.74e-5}),
        (640, 1000, [], {"lr": 6e-4}),
        (640, 0.001, [], {"lr": 1.5e-4}),
        # AdamW takes smaller steps in a wider model, and Muon does not.
        (2560, 1, MUON, {"lr": 1.5e-4, "embedding_lr": 0.05, "muon_lr": 0.02, "head_lr": None}),
        # A short run warms up for a tenth of its steps, unless its job says less.
        (640, 0.01, [], {"steps": 1440, "warmup_steps": 144}),
        (640, 0.01, ["pretrain.warmup_steps=40"], {"warmup_steps": None}),
    ],
)
def test_batch_and_rates_follow_by_rule(d_model, times, overrides, expected):
    found = settings_by_rule(load_job(SMALL, overrides), d_model, times * OWN)
    assert {name: found.get(name) for name in expected} == expected
    if times == 1 and not overrides:
        assert found == expected


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
