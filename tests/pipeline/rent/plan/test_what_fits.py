"""Which GPUs have the memory that a job needs, and what to change where they have too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.what_fits import gpus_that_fit, what_to_change
from tests.paths import JOBS
from tests.pipeline.rent.fine_tuning import PREFER, one, read_fine_tuning

A4000 = one("RTXA4000")


def on_a4000(job: Job) -> Estimate:
    return estimate(job, A4000)


def test_the_gpus_a_model_fits_on_are_those_with_enough_memory() -> None:
    found = gpus_that_fit(load_job(JOBS / "pion-xl.yaml"))
    assert "T4" not in found
    assert {"A40", "H100"} < set(found)
    memory = [GPU_TYPES[name].memory for name in found]
    assert memory == sorted(memory)


def test_lora_is_offered_with_what_to_write_where_all_weights_do_not_fit(tmp_path: Path) -> None:
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B")
    (offered,) = what_to_change(job, [on_a4000(job)])
    changed = on_a4000(read_fine_tuning(tmp_path, "Qwen3-1.7B", "sft.lora.rank=16"))
    assert changed.fits, "the offer holds"
    assert offered == (
        f"By LoRA, it fits on RTXA4000 ({changed.peak_bytes / 2**30:.1f} GiB): write `sft: {{lora: "
        "{rank: 16}}` next to the other fields of sft, or add sft.lora.rank=16 to the command."
    )


@pytest.mark.soak
def test_lora_is_offered_to_the_stage_of_preferences(tmp_path: Path) -> None:
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B", "sft=null", *PREFER)
    (offered,) = what_to_change(job, [on_a4000(job)])
    changed = read_fine_tuning(tmp_path, "Qwen3-1.7B", "sft=null", *PREFER, "prefer.lora.rank=16")
    assert on_a4000(changed).fits, "the offer holds"
    assert offered.endswith("or add prefer.lora.rank=16 to the command.")


@pytest.mark.soak
def test_preferences_after_lora_are_offered_the_same_additions(tmp_path: Path) -> None:
    sft = "sft.lora.rank=8"
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER, sft)
    assert on_a4000(job).lacks is not None
    (offered,) = what_to_change(job, [on_a4000(job)])
    changed = read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER, sft, "prefer.lora.rank=8")
    assert on_a4000(changed).fits, "the offer holds"
    assert offered.endswith("write the same `lora` below prefer as below sft.")


def test_lora_is_offered_to_both_stages_where_neither_fits(tmp_path: Path) -> None:
    job = read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER)
    (offered,) = what_to_change(job, [on_a4000(job)])
    both = "sft.lora.rank=16 prefer.lora.rank=16"
    assert on_a4000(read_fine_tuning(tmp_path, "Qwen3-1.7B", *PREFER, *both.split())).fits
    assert offered.startswith("By LoRA in both stages, it fits on RTXA4000 (")
    assert offered.endswith(
        f"write `lora: {{rank: 16}}` below sft and below prefer, or add {both} to the command."
    )


def test_recomputation_is_offered_before_lora_to_a_job_that_forbids_it(tmp_path: Path) -> None:
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
def test_nothing_is_offered_that_would_not_help(
    tmp_path: Path, name: str, overrides: list[str]
) -> None:
    job = read_fine_tuning(tmp_path, name, *overrides)
    assert what_to_change(job, [on_a4000(job)]) == []


def test_lora_does_not_help_where_pretraining_does_not_fit() -> None:
    job = load_job(JOBS / "pion-xl.yaml")
    found = estimate(job, one("T4"))
    assert found.lacks is not None
    assert what_to_change(job, [found]) == []
