"""Predict the memory of a training step: its parts, and the phase that needs the most.

No part of a model states bytes. What a micro-batch needs is traced on fake tensors
(pion/train/memory_trace), and remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from pion.config.lora import lora_cost
from pion.config.model_config import APART_ROLES
from pion.config.parts import Role
from pion.model.params_and_flops import cost_of, shapes_and_roles
from pion.train.memory_trace.live_bytes import ROUNDED_TO
from pion.train.memory_trace.remembered import remembered_peaks
from pion.train.optimizer.muon import Muon, step_bytes
from pion.train.optimizer.muon_rounds import divided_step_bytes
from pion.train.optimizer.rule import Rule, rule_of, state_bytes
from pion.train.shard_rules import KEPT_WHOLE, part_of
from pion.train.workload import Workload

# The memory of a process without a model. On a GPU: the CUDA context, cuBLAS' workspaces and NCCL's
# buffers. On a CPU: the libraries, Ray's among them.
RUNTIME_BYTES = {"cuda": 600 * 2**20, "cpu": 950 * 2**20}

# A trace misses small tensors, such as the maxima of flex attention's scores and the sums that a
# compiled norm keeps. Its phases were at most 1.2 % under those of measured steps.
MARGIN = 1.03

# In fp32, what a compiled norm returns is as small as what it reads, and torch's partitioner may
# keep both: its blocks kept up to 7.5 % more than a trace counts.
MARGIN_IN_FP32 = 1.1

# On a CPU, the C library leaves gaps between tensors, as a share of what a forward pass needs: by
# whether the way of learning computes with a copy in bf16 (measured in workers). To map each tensor
# separately would leave no gaps, but a step would take 1.5 to 2 times as long.
GAPS_ON_CPU = {False: 0.22, True: 0.62}


@dataclass(frozen=True)
class Memory:
    """The predicted peak of a training step, in bytes.

    The first fields last for the whole step. Each of the others is the most that one phase of the
    step needs in addition. Phases follow each other, so the largest one counts.
    """

    # In float32 unless they are frozen, and the gradients of the learned ones: one set, also with
    # several ranks, whose buckets (buckets.py) are these gradients. If ranks divide them: a rank's.
    # And what the way of learning keeps next to training.
    weights: int
    optimizer: int  # the moments, and AdamW's counts of steps
    activations: int  # what the forward pass keeps for the backward pass
    loss: int  # the end of the forward pass: activations, copies of weights, and the loss
    backward: int
    update: int  # the optimizer's step
    reserve: int  # what is no tensor, see `_reserve`

    @property
    def counted(self) -> int:
        """The bytes of the tensors at the peak."""
        return self.weights + self.optimizer + max(self.loss, self.backward, self.update)

    @property
    def total(self) -> int:
        """The bytes of a training step, including the reserve."""
        return self.reserve + self.counted


def predict_memory(work: Workload, *, micro_batch: int, recompute: bool) -> Memory:
    """Return the peak bytes of a training step over micro-batches of `micro_batch` rows.

    `recompute` keeps only what each block reads for the backward pass.
    """
    weights, moments, update = _state(work)
    peaks = remembered_peaks(work.traced(), micro_batch, recompute=recompute, ranks=work.ranks)
    compiled = work.compile and work.device == "cuda"
    margin = MARGIN_IN_FP32 if compiled and work.dtype == "float32" else MARGIN
    # On a CPU, what one phase frees is not all used again by the next.
    left = update if work.device == "cpu" else 0
    return Memory(
        weights=weights + work.sampling,
        optimizer=moments,
        activations=round(margin * peaks.activations),
        loss=round(margin * peaks.forward) + left,
        backward=round(margin * peaks.backward) + left,
        update=round(MARGIN * update),
        reserve=_reserve(work, micro_batch, moments, peaks.forward),
    )


@lru_cache(maxsize=64)
def _state(work: Workload) -> tuple[int, int, int]:
    """Return the bytes of the weights with their gradients, of the moments, and of an update.

    If ranks divide the weights, the bytes are those of the rank that keeps the most: its part of a
    weight, of its gradient and of its moments have as many elements.
    """
    parts, tensors = _parts(work), cost_of(work.config).tensors
    every, rounding = sum(part for *_, part in parts), ROUNDED_TO * tensors
    by_rule: dict[type[Rule], list[torch.Size]] = {}
    if work.lora is not None:
        additions = lora_cost(work.config, work.lora)
        in_products = sum(p for _, role, p in parts if role in ("matrix", "embedding", "head"))
        frozen = work.stored_width * in_products + 4 * (every - in_products) + rounding
        learned, rounding = additions.params, ROUNDED_TO * additions.tensors
        if work.sharded:
            # A part has whole rows: of the matrices with LoRA's rank of them, so many.
            learned = -(-learned * -(-work.lora.rank // work.ranks) // work.lora.rank)
        moments = 8 * learned
    else:
        trained = [each for each in parts if not work.only_apart or each[1] in APART_ROLES]
        learned, moments = sum(part for *_, part in trained), 0
        frozen = 4 * (every - learned)
        for shape, role, part in trained:
            by_rule.setdefault(rule_of(work.optimizer, role), []).append(shape)
            moments += state_bytes(work.optimizer, role, shape) * part // shape.numel()
    weights, matrices = frozen + 8 * learned + 2 * rounding, by_rule.pop(Muon, [])
    update = max((rule.step_bytes(shapes) for rule, shapes in by_rule.items()), default=0)
    if work.ranks == 1:
        by_muon = step_bytes(matrices, work.width)
    else:
        by_muon = divided_step_bytes(matrices, work.width, work.ranks, sharded=work.sharded)
    return weights, moments + 3 * rounding, max(update, by_muon)


def _parts(work: Workload) -> list[tuple[torch.Size, Role, int]]:
    """Return the shape and the role of each parameter, and how many elements a rank keeps."""
    return [
        (
            shape,
            role,
            part_of(shape, work.ranks, role)
            if work.sharded and role not in KEPT_WHOLE
            else shape.numel(),
        )
        for shape, role in shapes_and_roles(work.config)
    ]


def _reserve(work: Workload, micro_batch: int, moments: int, forward: int) -> int:
    """Return the bytes for what is no tensor of a step.

    On a CPU: the libraries, the copy that is saved, and gaps. On a GPU: the runtime, and what
    kernels allocate inside, the most in attention's backward pass in one layer. HEADROOM
    (micro_batch.py) is left for fragmentation there.
    """
    if work.device == "cpu":
        return (
            RUNTIME_BYTES["cpu"]
            + moments * 3 // 2
            + round(GAPS_ON_CPU[work.sampling > 0 and work.width == 2] * forward)
        )
    return RUNTIME_BYTES["cuda"] + micro_batch * work.entries * _inside_attention(work)


def _inside_attention(work: Workload) -> int:
    """Return the bytes per entry that a fused kernel on CUDA allocates inside its backward pass.

    Read in the source of flash attention, which allocates the most, and not measured: the gradient
    of queries and a sum for each head in fp32, and the gradients of keys and values for each query
    head. Fake tensors do not show it.
    """
    query = work.config.n_heads * work.config.head_dim
    return 4 * (query + work.config.n_heads) + 2 * work.width * query
