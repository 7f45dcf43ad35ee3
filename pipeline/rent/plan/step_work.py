"""What a training step of a job computes and sends, as its model and optimizer say."""

from __future__ import annotations

from functools import lru_cache

import torch

from pion.config.lora import lora_cost
from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder
from pion.model.params_and_flops import cost_of, matrix_shapes
from pion.train.buckets import BUCKET_BYTES, bucket_sizes, in_order_of_backward
from pion.train.memory import Workload
from pion.train.muon import newton_schulz_flops
from pipeline.rent.plan.step_seconds import StepWork

# Gradients are summed in fp32, and AdamW's updates are in fp32.
FP32 = 4


def step_work(work: Workload, global_batch: int, micro_batch: int, *, recompute: bool) -> StepWork:
    """Return what a step over `global_batch` rows computes and sends.

    A rank computes at most `micro_batch` rows at once. `recompute` is whether the backward pass
    computes the forward pass again. Muon's updates are sent as its iterations return them.
    """
    flops = work.flops()
    gradients, last_bucket = _gradient_bytes(work)
    shapes = matrix_shapes(work.config) if _has_muon(work) else ()
    by_muon = sum(shape.numel() for shape in shapes)
    return StepWork(
        global_batch=global_batch,
        seq_len=work.seq_len,
        forward_flops=flops.forward,
        backward_flops=flops.backward + (flops.forward if recompute else 0.0),
        micro_batch=micro_batch,
        gradient_bytes=gradients,
        last_bucket_bytes=last_bucket,
        update_bytes=FP32 * (_learned(work) - by_muon) + work.width * by_muon,
        muon_flops=tuple(float(newton_schulz_flops(shape)) for shape in shapes),
    )


def _has_muon(work: Workload) -> bool:
    return work.optimizer == "muon" and work.lora is None and not work.only_draft


def _learned(work: Workload) -> int:
    """Return how many numbers a step updates, if no phase freezes any."""
    if work.lora is not None:
        return lora_cost(work.config, work.lora).params
    cost = cost_of(work.config)
    return cost.params["draft"] if work.only_draft else cost.all_params


def _gradient_bytes(work: Workload) -> tuple[int, int]:
    """Return the bytes of all gradients, and of those that are sent last."""
    if work.lora is None and not work.only_draft:
        sizes = _buckets(work.config)
        return sum(sizes), sizes[-1]
    learned = FP32 * _learned(work)  # of many small parameters
    return learned, min(learned, BUCKET_BYTES)


@lru_cache(maxsize=16)
def _buckets(config: ModelConfig) -> tuple[int, ...]:
    with torch.device("meta"):
        return tuple(bucket_sizes(in_order_of_backward(Decoder(config))))
