"""What a training step of a job computes, sends and keeps, as its model and optimizer say."""

from __future__ import annotations

from functools import lru_cache

import torch

from pion.config.lora import lora_cost
from pion.config.model_config import ModelConfig
from pion.config.parts import APART_ROLES
from pion.model.decoder import Decoder
from pion.model.params_and_flops import cost_of, matrix_shapes, shapes_and_roles
from pion.train.buckets import BUCKET_BYTES, bucket_sizes, in_order_of_backward
from pion.train.memory import Workload
from pion.train.optimizer.moments import each_matrix, elements, moment_bytes
from pion.train.optimizer.ownership import Shape
from pion.train.shard_rules import KEPT_WHOLE
from pipeline.rent.plan.step_seconds import InParts, StepWork

# Gradients are summed in fp32, and AdamW's updates are in fp32.
FP32 = 4


def step_work(
    work: Workload, global_batch: int, micro_batch: int, *, recompute: bool, by_run: bool = False
) -> StepWork:
    """Return what a step over `global_batch` rows computes and sends.

    A rank computes at most `micro_batch` rows at once. `recompute` is whether the backward pass
    computes the forward pass again. `by_run` is whether the speed of a card has the time of its
    host in it. Muon's updates are sent as its iterations return them.
    """
    flops = work.flops()
    gradients, last_bucket = _gradient_bytes(work)
    matrices = _matrices(work)
    by_muon = elements(matrices)
    return StepWork(
        global_batch=global_batch,
        seq_len=work.seq_len,
        forward_flops=flops.forward,
        backward_flops=flops.backward + (flops.forward if recompute else 0.0),
        micro_batch=micro_batch,
        blocks=None if by_run else work.config.n_layers,
        gradient_bytes=gradients,
        last_bucket_bytes=last_bucket,
        update_bytes=FP32 * (_learned(work) - by_muon) + work.width * by_muon,
        matrices=matrices,
        in_parts=_in_parts(work) if work.sharded else None,
    )


def moments_on(work: Workload, ranks: int) -> int:
    """Return the bytes of the optimizer's moments on the rank that has the most of them."""
    matrices = _matrices(work)
    if work.sharded:
        return -(-(8 * _learned(work) - 4 * elements(matrices)) // ranks)
    return moment_bytes(_learned(work) - elements(matrices), matrices, ranks)


def _in_parts(work: Workload) -> InParts:
    """Return what cards send each other if they divide the weights of all blocks, and the rest."""
    blocks = rest = 0
    for shape, role in shapes_and_roles(work.config):
        if role == "matrix":
            blocks += work.width * shape.numel()
        elif role not in KEPT_WHOLE:
            width = work.stored_width if role in ("embedding", "head") else FP32
            rest += width * shape.numel()
    by_muon = elements(_matrices(work))
    return InParts(
        blocks=blocks,
        rest=rest,
        gradients=FP32 * _learned(work),
        matrices=(FP32 + work.width) * by_muon,
    )


def _matrices(work: Workload) -> tuple[Shape, ...]:
    """Return the shapes of the matrices that Muon updates, those of stacks each for itself."""
    if work.optimizer != "muon" or work.lora is not None or work.only_apart:
        return ()
    return each_matrix(matrix_shapes(work.config))


def _learned(work: Workload) -> int:
    """Return how many numbers a step updates, if no phase freezes any."""
    if work.lora is not None:
        return lora_cost(work.config, work.lora).params
    cost = cost_of(work.config)
    return sum(cost.params[role] for role in APART_ROLES) if work.only_apart else cost.all_params


def _gradient_bytes(work: Workload) -> tuple[int, int]:
    """Return the bytes of all gradients, and of those that are sent last."""
    if work.lora is None and not work.only_apart:
        sizes = _buckets(work.config)
        return sum(sizes), sizes[-1]
    learned = FP32 * _learned(work)  # of many small parameters
    return learned, min(learned, BUCKET_BYTES)


@lru_cache(maxsize=16)
def _buckets(config: ModelConfig) -> tuple[int, ...]:
    with torch.device("meta"):
        return tuple(bucket_sizes(in_order_of_backward(Decoder(config))))
