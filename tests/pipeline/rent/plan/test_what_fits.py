"""Which GPUs have the memory that a job needs, what to change where they have too little, and what
each way to fine-tune needs."""

import dataclasses
from functools import partial

import pytest

from pion.config.model_config import ModelConfig
from pipeline.job.file import load_job
from pipeline.rent.check.machines import _problem, _worker_problem
from pipeline.rent.plan import what_fits
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.what_fits import (
    GIB,
    Way,
    fewest_that_fit,
    fine_tuning_stages,
    ways_on,
    what_several_would_fit,
    what_to_change,
)
from tests.paths import JOBS
from tests.pipeline.rent.fine_tuning import PREFER, one, read_fine_tuning
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.jobs import job_from, tiny_job
from tests.support.published_models import PUBLISHED

A4000 = one("RTXA4000")
in_soak = partial(pytest.param, marks=pytest.mark.soak)


def on_a4000(job):
    return estimate(job, A4000)


@pytest.mark.soak
def test_lora_is_offered_to_the_stage_of_preferences(tmp_path):
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B", "sft=null", *PREFER)
    (offered,) = what_to_change(job, [on_a4000(job)])
    changed = read_fine_tuning(tmp_path, "Qwen3-1.7B", "sft=null", *PREFER, "prefer.lora.rank=16")
    assert on_a4000(changed).fits, "the offer holds"
    assert offered.endswith("or add prefer.lora.rank=16 to the command.")


@pytest.mark.soak
def test_preferences_after_lora_are_offered_the_same_additions(tmp_path):
    sft = "sft.lora.rank=8"
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER, sft)
    assert on_a4000(job).lacks is not None
    (offered,) = what_to_change(job, [on_a4000(job)])
    changed = read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER, sft, "prefer.lora.rank=8")
    assert on_a4000(changed).fits, "the offer holds"
    assert offered.endswith("write the same `lora` below prefer as below sft.")


def test_lora_is_offered_to_both_stages_where_neither_fits(tmp_path):
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER)
    (offered,) = what_to_change(job, [on_a4000(job)])
    both = "sft.lora.rank=16 prefer.lora.rank=16"
    assert on_a4000(read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER, *both.split())).fits
    assert offered.startswith("By LoRA in both stages, it fits on RTXA4000 (")
    assert offered.endswith(
        f"write `lora: {{rank: 16}}` below sft and below prefer, or add {both} to the command."
    )


def test_recomputation_is_offered_before_lora_to_a_job_that_forbids_it(tmp_path):
    job = read_fine_tuning(tmp_path, "Qwen3-0.6B", "hardware.recompute=false")
    recompute, lora = what_to_change(job, [on_a4000(job)])
    assert recompute.startswith("With recomputed activations, it fits on RTXA4000 (")
    assert recompute.endswith("GiB): remove hardware.recompute: false.")
    assert lora.startswith("By LoRA")
    assert on_a4000(read_fine_tuning(tmp_path, "Qwen3-0.6B")).fits, "the offer holds"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("Qwen3-0.6B", []),  # it fits
        (
            "Qwen3-1.7B",
            [
                "sft.lora.rank=16",
                "data.seq_len=40960",
                "sft.global_batch=1",
                "hardware.recompute=true",
            ],
        ),
        ("SmolLM2-360M", ["hardware.micro_batch=16"]),  # that is the reason
    ],
)
def test_nothing_is_offered_that_would_not_help(tmp_path, name, overrides):
    job = read_fine_tuning(tmp_path, name, *overrides)
    assert what_to_change(job, [on_a4000(job)]) == []


def test_lora_does_not_help_where_pretraining_does_not_fit():
    job = load_job(JOBS / "pion-xl.yaml")
    found = estimate(job, one("T4"))
    assert found.lacks is not None
    assert what_to_change(job, [found]) == []


# ---------------------------------------------------------------- ways to fine-tune


@pytest.mark.parametrize(
    ("name", "fits", "gib"),
    [
        # The GiB that one row of 2,048 tokens needs in each way.
        ("SmolLM2-360M", (True, True, True), (9.0, 6.6, 5.0)),
        ("Qwen3-0.6B", (False, True, True), (14.4, 11.1, 7.9)),
        ("Qwen3-1.7B", (False, False, True), (35.3, 28.9, 9.4)),
    ],
)
def test_what_a_published_model_needs_on_a_card_of_16_gb(tmp_path, name, fits, gib):
    """With a job that says nothing but the model and the conversations."""
    ways = ways_on(read_fine_tuning(tmp_path, name), "sft", A4000)
    found = (ways.full, ways.recomputed, ways.lora)
    assert tuple(way.fits for way in found) == fits
    assert all((way.peak_bytes <= ways.usable) == way.fits for way in found)
    smallest = ways_on(read_fine_tuning(tmp_path, name, "hardware.micro_batch=1"), "sft", A4000)
    least = (smallest.full, smallest.recomputed, smallest.lora)
    assert [way.micro_batch for way in least] == [1, 1, 1]
    assert tuple(round(way.peak_bytes / GIB, 1) for way in least) == gib


def test_the_parameters_of_published_models_are_those_of_their_settings(tmp_path):
    from pipeline.rent.check.job import count_parameters

    job = read_fine_tuning(tmp_path, "Qwen3-1.7B")
    assert count_parameters(job) == PUBLISHED["Qwen3-1.7B"][2]


@pytest.mark.parametrize(
    ("last", "overrides", "name"),
    [
        ("sft", ["hardware.recompute=false"], "full"),
        ("sft", ["hardware.recompute=true"], "recomputed"),
        ("sft", ["sft.lora.rank=16"], "lora"),
        ("sft", ["sft.lora.rank=64", "hardware.recompute=true"], "lora"),
        in_soak("prefer", [*PREFER, "hardware.recompute=false"], "full"),
        in_soak("prefer", [*PREFER, "hardware.recompute=true"], "recomputed"),
        ("prefer", [*PREFER, "prefer.lora.rank=16"], "lora"),
    ],
)
def test_each_way_is_what_the_job_takes_if_it_asks_for_it(tmp_path, last, overrides, name):
    job = read_fine_tuning(tmp_path, "SmolLM2-360M", *overrides)
    assert fine_tuning_stages(job)[-1] == last
    stage = estimate(job, A4000).stages[-1]
    ways = ways_on(job, last, A4000)
    assert getattr(ways, name) == Way(stage.micro_batch, stage.recompute, stage.peak_bytes, True)
    assert str(ways).startswith(f"{last} in full: ")


def test_the_rank_is_that_of_the_job_or_the_default(tmp_path):
    ways = [
        ways_on(read_fine_tuning(tmp_path, "SmolLM2-360M", *asked), "sft", A4000)
        for asked in ([], ["sft.lora.rank=128", "hardware.micro_batch=4"])
    ]
    assert [way and way.rank for way in ways] == [16, 128]
    assert "; by LoRA of rank 128: ✓ " in str(ways[1])
    assert str(ways[1]).endswith(" GiB (4 rows)")


def test_a_model_of_experts_has_no_way_by_lora():
    tuned = job_from(ModelConfig.preset("tachyon-tiny"), pretrain=None)
    ways = ways_on(tuned, "sft", A4000)
    assert ways.full.fits
    assert ways.lora is None
    assert "LoRA" not in str(ways)


def test_a_job_that_pretrains_has_no_choice_to_make():
    """A GPU that pretrains the model also trains all its weights afterwards."""
    assert fine_tuning_stages(load_job(JOBS / "pion-small.yaml", [])) == []


def test_without_a_known_gpu_there_is_nothing_to_say(tmp_path):
    job = read_fine_tuning(tmp_path, "SmolLM2-360M")
    assert ways_on(job, "sft", dataclasses.replace(A4000, gpu=None)) is None
    assert ways_on(job, "sft", dataclasses.replace(A4000, gpu_memory=None)) is None


# ---------------------------------------------------------------- cards that divide a model

# Two rows for each of four cards, so that one micro-batch has them all.
FIELDS = {
    "model": "pion-small",
    "data__seq_len": 96,
    "pretrain__global_batch": 8,
    "hardware__compile": False,
}


def small(**fields):
    return tiny_job(**{**FIELDS, "sft": None, "prefer": None, **fields})


def cards(count, gib=1.9):
    """Return a machine whose cards have so little memory that four must divide the model."""
    return dataclasses.replace(offer("A40", count=count), gpu_memory=int(gib * GIB))


# ---------------------------------------------------------------- memory


def test_the_cards_of_a_machine_divide_a_model_only_if_it_does_not_fit_otherwise():
    divided, whole = estimate(small(), cards(4)), estimate(small(), cards(4, gib=8))
    assert divided.fits
    assert divided.sharded
    assert divided.peak_bytes <= 0.9 * 1.9 * GIB
    assert not whole.sharded
    assert estimate(small(hardware__fsdp=True), cards(4, gib=8)).sharded


def test_a_machine_whose_cards_are_too_small_says_what_each_would_need():
    guess = estimate(small(), cards(4, gib=0.9))
    assert "GiB on each of 4 workers that divide the weights, and 0.8 of 0.9 GiB" in guess.problem
    alone = estimate(small(hardware__fsdp=False), cards(4))
    assert "divide" not in alone.problem


@pytest.mark.soak
def test_the_largest_preset_fits_on_four_a40_and_not_on_eight_a4000():
    job = load_job(JOBS / "tachyon-large.yaml", ())
    fits, too_small = (estimate(job, offer(g, count=n)) for g, n in (("A40", 4), ("RTXA4000", 8)))
    assert fits.sharded
    assert "on each of 8 workers that divide the weights, and 14.1 of 15.7 GiB" in str(
        too_small.problem
    )
    (words,) = what_several_would_fit(job, ["A40"])
    assert "it fits on 4 × A40 (" in words
    assert "write accelerators: A40:4 in the rental" in words


def test_machines_with_more_gpus_than_a_step_has_rows_are_not_named(monkeypatch):
    """It fits on four; two are too few."""
    monkeypatch.setattr(what_fits, "estimate", lambda job, offer: _as_small(job, offer))
    assert fewest_that_fit(small(pretrain__global_batch=3), "A40") is None


def test_a_job_that_fits_on_a_common_gpu_is_told_of_no_machine_with_several(monkeypatch):
    monkeypatch.setattr(what_fits, "gpus_that_fit", lambda job: ["A100-80GB", "H200"])
    assert what_several_would_fit(small(), ["A40"]) == []


# ---------------------------------------------------------------- what is said


def test_a_machine_with_one_gpu_is_refused_if_the_job_divides_the_model():
    job = small(hardware__fsdp=True)
    assert "set workers to at least 2" in str(_worker_problem(job, cards(1), 1))
    assert _worker_problem(job, cards(2), 1) is None


def test_a_machine_that_is_too_small_is_told_of_one_with_several_gpus(monkeypatch):
    monkeypatch.setattr(what_fits, "gpus_that_fit", lambda job: [])
    monkeypatch.setattr(what_fits, "estimate", lambda job, offer: _as_small(job, offer))
    problem = _problem(small(), estimate(small(), cards(1)), 1, force=False)
    assert "On several GPUs of one machine, it fits on 4 × A40 (" in problem


def _as_small(job, machine):
    return estimate(job, dataclasses.replace(machine, gpu_memory=int(1.9 * GIB)))
