"""`pretrain: {recipe: pion2}` stands for the settings that docs/recipes.md names."""

from __future__ import annotations

import pytest

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.job.train_sections import Pretrain
from tests.paths import JOBS

# Numbers that finished runs have recorded: they never change.
OF_768 = {
    "optimizer": "muon",
    "muon_lr": 0.02,
    "lr": 0.003,
    "embedding_lr": 0.1,
    "vector_lr": 0.01,
    "min_lr": 0.00015,
    "warmup_steps": 40,
    "decay_shape": "linear",
    "decay_fraction": 0.65,
    "weight_decay": 0.0,
    "beta1": 0.8,
    "eps": 1e-10,
}


def job(*overrides: str) -> Job:
    given = "pretrain={recipe: pion2, steps: 4000}"
    return load_job(JOBS / "demo.yaml", ["model={preset: pion2-base}", given, *overrides])


def pretrain(*overrides: str) -> Pretrain:
    found = job(*overrides).pretrain
    assert found is not None
    return found


def test_its_numbers_never_change() -> None:
    found = pretrain()
    assert {name: getattr(found, name) for name in OF_768} == OF_768
    others = Pretrain(steps=4000).model_dump(exclude={"recipe", *OF_768})
    assert found.model_dump(exclude={"recipe", *OF_768}) == others


def test_rates_of_adamw_follow_the_width_and_the_warm_up_the_steps() -> None:
    small = pretrain("model={preset: pion2-base, d_model: 192}", "pretrain.steps=240")
    assert (small.lr, small.embedding_lr, small.vector_lr) == (0.006, 0.2, 0.02)
    assert (small.min_lr, small.muon_lr, small.warmup_steps) == (0.0003, 0.02, 20)


def test_what_a_job_gives_comes_first() -> None:
    found = pretrain("pretrain.lr=1e-3", "pretrain.optimizer=adamw", "pretrain.warmup_steps=0")
    assert (found.lr, found.optimizer, found.warmup_steps) == (1e-3, "adamw", 0)
    assert found.min_lr == 5e-5  # a twentieth of the rate that the job gives


def test_it_is_the_same_as_its_settings_written_out() -> None:
    written = [f"pretrain.{name}={value}" for name, value in OF_768.items()]
    spelled_out = job("pretrain={steps: 4000}", *written)
    assert digest_job(spelled_out) == digest_job(job())


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        (["pretrain.recipe=pion3"], r"pretrain\.recipe: unknown value 'pion3'"),
        (["pretrain.steps=many"], r"pretrain\.steps: 'many' should be a whole number"),
        (["pretrain.steps=0"], r"pretrain\.steps: 0 should be greater than 0"),
        (["pretrain.lr=fast"], r"pretrain\.lr: 'fast' should be a number"),
        (["model={preset: pion2-bas}"], r"unknown model preset 'pion2-bas'"),
        (["model={from: models/demo}"], r"pretrain\.recipe: a recipe trains from random weights"),
    ],
)
def test_a_mistake_next_to_it_is_named(overrides: list[str], mistake: str) -> None:
    with pytest.raises(BadInput, match=mistake):
        job(*overrides)
