"""Which GPUs have the memory that a job needs, what to change where they have too little, and what
each way to fine-tune needs."""

import dataclasses
from functools import partial

import pytest

from pion.config.model_config import ModelConfig
from pipeline.job.file import load_job
from pipeline.rent.check.job import count_parameters
from pipeline.rent.check.machines import _problem, _worker_problem
from pipeline.rent.plan import what_fits
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.what_fits import (
    GIB,
    fine_tuning_stages,
    on_gpus,
    on_several,
    ways_on,
    what_several_would_fit,
    what_to_change,
)
from tests.paths import JOBS
from tests.pipeline.rent.fine_tuning import PREFER, one, read_fine_tuning
from tests.pipeline.rent.plan.rows import rows_of
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.jobs import job_from, tiny_job
from tests.support.published_models import PUBLISHED

A4000 = one("RTXA4000")
in_soak = partial(pytest.param, marks=pytest.mark.soak)
SAME = "GiB): write the same `lora` below prefer as below sft."
ADD = "next to the other fields of {0}, or add {0}.lora.rank=16 to the command."
# By name: what is offered, the overrides that do it, and how the sentence ends.
OFFERS = {
    "sft": ("By LoRA", ["sft.lora.rank=16"], ADD.format("sft")),
    "prefer": ("By LoRA", ["prefer.lora.rank=16"], ADD.format("prefer")),
    "the same": ("By LoRA", ["prefer.lora.rank=8"], SAME),
    "both": (
        "By LoRA",
        ["sft.lora.rank=16", "prefer.lora.rank=16"],
        "or add sft.lora.rank=16 to the command; and write `prefer: {lora: {rank: 16}}` next to "
        "the other fields of prefer, or add prefer.lora.rank=16 to the command.",
    ),
    "recompute": (
        "With recomputed activations",
        ["hardware.recompute=null"],
        "GiB): remove hardware.recompute: false.",
    ),
}
LONG = ["data.seq_len=40960", "sft.global_batch=1", "hardware.recompute=true"]
# Rows of prefer for which LoRA is needed, after conversations that train all weights.
LONGER = ["prefer.seq_len=32768", "prefer.global_batch=1"]


@pytest.mark.parametrize(
    ("name", "asked", "offers"),
    [
        in_soak("Qwen3-1.7B", ["sft=null", *PREFER], ["prefer"]),
        in_soak("Qwen3-1.7B", [*PREFER, "sft.lora.rank=8"], ["the same"]),
        in_soak("Qwen3-0.6B", [*PREFER, *LONGER], ["prefer"]),
        ("Qwen3-1.7B", PREFER, ["both"]),
        ("Qwen3-0.6B", ["hardware.recompute=false"], ["recompute", "sft"]),
        # What would not help is not offered: it fits, rows are too long, or a micro-batch is why.
        ("Qwen3-0.6B", [], []),
        ("Qwen3-1.7B", ["sft.lora.rank=16", *LONG], []),
        ("SmolLM2-360M", ["hardware.micro_batch=16"], []),
    ],
)
def test_each_change_with_which_a_job_fits_is_offered_and_the_offer_holds(
    tmp_path, name, asked, offers
):
    job = read_fine_tuning(tmp_path, name, *asked)
    found = what_to_change(job, [estimate(job, A4000)])
    assert len(found) == len(offers)
    for words, (how, overrides, end) in zip(found, map(OFFERS.get, offers)):
        assert words.startswith(f"{how}, it fits on RTXA4000 (")
        assert words.endswith(end)
        assert estimate(read_fine_tuning(tmp_path, name, *asked, *overrides), A4000).fits


def test_lora_does_not_help_where_pretraining_does_not_fit():
    job = load_job(JOBS / "pion-xl.yaml")
    found = estimate(job, one("T4"))
    assert found.lacks is not None
    assert what_to_change(job, [found]) == []


# ---------------------------------------------------------------- ways to fine-tune


@rows_of("published")
def test_what_a_published_model_needs_on_a_card_of_16_gb(tmp_path, row):
    """With a job that says nothing but the model and the conversations."""
    name = row["model"]
    ways = ways_on(read_fine_tuning(tmp_path, name), "sft", A4000)
    assert [way.fits for way in ways.ways.values()] == row["fits"]
    assert all((way.peak_bytes <= ways.usable) == way.fits for way in ways.ways.values())
    smallest = ways_on(read_fine_tuning(tmp_path, name, "hardware.micro_batch=1"), "sft", A4000)
    least = smallest.ways.values()
    assert [way.micro_batch for way in least] == [1, 1, 1]
    assert [round(way.peak_bytes / GIB, 1) for way in least] == row["gib"]
    assert count_parameters(read_fine_tuning(tmp_path, name)) == PUBLISHED[name][2]


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
    assert ways.ways[name] == stage
    assert str(ways).startswith(f"{last} in full: ")


def test_the_rank_is_that_of_the_job_or_the_default_and_lora_is_trained_by_adamw(tmp_path):
    few, many = (
        ways_on(read_fine_tuning(tmp_path, "SmolLM2-360M", *fields), "sft", A4000)
        for fields in (["sft.optimizer=muon"], ["sft.lora.rank=128", "hardware.micro_batch=4"])
    )
    assert (few.rank, many.rank) == (16, 128)
    assert "; by LoRA of rank 128: ✓ " in str(many)
    assert str(many).endswith(" GiB (4 rows)")
    optimizers = {name: way.in_memory.optimizer for name, way in few.ways.items()}
    assert optimizers == {"full": "muon", "recomputed": "muon", "lora": "adamw"}


def test_a_model_of_experts_has_no_way_by_lora():
    tuned = job_from(ModelConfig.preset("tachyon-tiny"), pretrain=None)
    ways = ways_on(tuned, "sft", A4000)
    assert ways.ways["full"].fits
    assert "lora" not in ways.ways
    assert ways.as_json()["lora"] is None
    assert "LoRA" not in str(ways)


def test_there_is_nothing_to_say_of_a_job_that_pretrains_nor_of_an_unknown_gpu(tmp_path):
    """A GPU that pretrains the model also trains all its weights afterwards."""
    assert fine_tuning_stages(load_job(JOBS / "pion-small.yaml", [])) == []
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


def test_the_cards_of_a_machine_divide_a_model_only_if_it_does_not_fit_otherwise():
    divided, whole = estimate(small(), cards(4)), estimate(small(), cards(4, gib=8))
    assert divided.fits
    assert divided.sharded
    assert divided.peak_bytes <= 0.9 * 1.9 * GIB
    assert not whole.sharded
    assert what_several_would_fit(small(), [estimate(small(), cards(1))]) == [], "one GPU will do"
    assert estimate(small(hardware__fsdp=True), cards(4, gib=8)).sharded


def test_a_machine_whose_cards_are_too_small_says_what_each_would_need():
    guess = estimate(small(), cards(4, gib=0.9))
    words = "GiB on each of 4 workers that divide the weights, and 0.8 of 0.9 GiB"
    assert words in str(guess.problem)
    assert "divide" not in str(estimate(small(hardware__fsdp=False), cards(4)).problem)


@pytest.mark.soak
def test_the_largest_preset_fits_on_four_a40_and_not_on_eight_a4000():
    job = load_job(JOBS / "tachyon-large.yaml", ())
    fits, too_small = (estimate(job, offer(g, count=n)) for g, n in (("A40", 4), ("RTXA4000", 8)))
    assert fits.sharded
    assert "on each of 8 workers that divide the weights, and 14.1 of 15.7 GiB" in str(
        too_small.problem
    )
    (words,) = what_several_would_fit(job, [on_gpus(job, "A40")])
    assert "it fits on 4 × A40 (" in words
    assert "write accelerators: A40:4 in the rental" in words


@pytest.fixture
def small_gpus(monkeypatch):
    """Let each GPU have so little memory that four must divide the model."""
    kinds = what_fits.GPU_TYPES.items()
    small = {gpu: dataclasses.replace(kind, gib=1.9) for gpu, kind in kinds}
    monkeypatch.setattr(what_fits, "GPU_TYPES", small)


def test_machines_with_more_gpus_than_a_step_has_rows_are_not_named(small_gpus):
    """It fits on four; two are too few."""
    for rows, counts in ((8, [4]), (3, [])):
        job = small(pretrain__global_batch=rows)
        assert [e.offer.count for e in on_several(job, [on_gpus(job, "A40")])] == counts


def test_a_machine_with_one_gpu_is_refused_if_the_job_divides_the_model():
    job = small(hardware__fsdp=True)
    assert "set workers to at least 2" in str(_worker_problem(job, cards(1), 1))
    assert _worker_problem(job, cards(2), 1) is None


def test_a_machine_that_is_too_small_is_told_of_one_with_several_gpus(small_gpus):
    problem = _problem(small(), estimate(small(), cards(1)), 1, force=False)
    assert "On several GPUs of one machine, it fits on 4 × A40 (" in problem
