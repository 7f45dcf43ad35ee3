"""What a step of a model computes and sends: gradients, updates, and Muon's arithmetic."""

from __future__ import annotations

import dataclasses

import pytest

from pion.config.lora import Lora, lora_cost
from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import flops_per_token, matrix_shapes
from pion.train.memory import Workload, predict_memory
from pipeline.rent.plan.step_seconds import step_seconds
from pipeline.rent.plan.step_work import moments_on, step_work

SMALL = ModelConfig.preset("pion-small")
WORK = Workload(SMALL, 2048, "bfloat16", "muon", "cuda", False)
# 16 layers of 7 matrices, a tied embedding, and gains.
MATRICES, EMBEDDING, ALL = 70_778_880, 32_165_120, 102_967_168


def test_a_step_of_pion_small_by_hand() -> None:
    found = step_work(WORK, 64, 16, recompute=False)
    assert found.tokens == 131_072
    assert found.forward_flops + found.backward_flops == flops_per_token(SMALL, 2048)
    assert found.gradient_bytes == 4 * ALL
    # The gradient of the embedding is complete last. It has a bucket for itself.
    assert found.last_bucket_bytes == 4 * EMBEDDING
    assert found.update_bytes == 4 * (ALL - MATRICES) + 2 * MATRICES
    assert len(found.matrices) == 112


def test_fp32_updates_are_sent_in_fp32_and_adamw_has_no_matrices_to_divide() -> None:
    precise = dataclasses.replace(WORK, dtype="float32")
    assert step_work(precise, 64, 16, recompute=False).update_bytes == 4 * ALL
    adamw = step_work(dataclasses.replace(WORK, optimizer="adamw"), 64, 16, recompute=False)
    assert adamw.update_bytes == 4 * ALL
    assert adamw.matrices == ()


def test_recomputing_adds_a_forward_pass_to_the_backward_pass() -> None:
    once, twice = (step_work(WORK, 64, 16, recompute=again) for again in (False, True))
    assert twice.backward_flops == once.backward_flops + once.forward_flops
    assert twice.forward_flops == once.forward_flops


def test_lora_sums_and_sends_its_additions_only() -> None:
    lora = Lora()
    found = step_work(dataclasses.replace(WORK, lora=lora), 64, 16, recompute=False)
    assert found.gradient_bytes == found.update_bytes == 4 * lora_cost(SMALL, lora).params
    assert found.matrices == ()


def test_experts_are_divided_one_by_one() -> None:
    experts = ModelConfig.preset("tachyon-tiny")
    found = step_work(dataclasses.replace(WORK, config=experts), 64, 16, recompute=False)
    stacks = [shape for shape in matrix_shapes(experts) if len(shape) == 3]
    assert stacks
    assert len(found.matrices) > len(matrix_shapes(experts))
    assert sum(rows * cols for rows, cols in found.matrices) == sum(
        shape.numel() for shape in matrix_shapes(experts)
    )


def test_the_moments_are_held_once_over_all_ranks() -> None:
    alone = moments_on(WORK, 1)
    assert alone == 8 * (ALL - MATRICES) + 4 * MATRICES
    predicted = predict_memory(WORK, micro_batch=1, recompute=False).optimizer
    assert alone == pytest.approx(predicted, rel=0.001), "but for rounding of small tensors"
    # 112 matrices of few shapes are divided evenly.
    assert moments_on(WORK, 8) == pytest.approx(alone / 8, rel=0.01)
    adamw = dataclasses.replace(WORK, optimizer="adamw")
    assert moments_on(adamw, 8) == 8 * ALL / 8
    # More ranks than matrices: some ranks have one, and some have none.
    assert moments_on(WORK, 200) > alone / 200


@pytest.mark.parametrize(
    ("preset", "share"), [("pion-small", 0.017), ("pion-large", 0.036), ("pion-xl", 0.068)]
)
def test_the_busiest_of_eight_cards_has_at_most_a_sixth_of_muons_arithmetic(
    preset: str, share: float
) -> None:
    """And at 131k tokens a step, no more than this share of the arithmetic of training."""
    of_preset = dataclasses.replace(WORK, config=ModelConfig.preset(preset))
    work = step_work(of_preset, 64, 8, recompute=False)
    every, own = (
        step_seconds(work, 8, flops_per_second=1e15, bytes_per_second=1e12, sharded=sharded)
        for sharded in (False, True)
    )
    assert own.muon <= every.muon / 6
    assert own.muon / own.computing <= share
