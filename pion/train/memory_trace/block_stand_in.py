"""A block that computes nothing: it takes and frees the bytes that were measured of a real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from pion.model.attention.masks import Mask
from pion.train.memory_trace.block_memory import ROWS, BlockMemory, Measured, at, most
from pion.train.memory_trace.live_bytes import size_of
from pion.train.memory_trace.shards import NOTHING, Shards


@dataclass(frozen=True)
class Result:
    """A result of a block: its shape at the two ROWS, and whether it can be differentiated."""

    few: torch.Size
    many: torch.Size
    dtype: torch.dtype
    differentiable: bool

    def shape(self, rows: int) -> list[int]:
        """Return the shape at so many rows."""
        sizes = zip(self.few, self.many, strict=True)
        return [a + (rows - ROWS[0]) * (b - a) // (ROWS[1] - ROWS[0]) for a, b in sizes]


@dataclass(frozen=True)
class Kind:
    """Blocks of one structure: what each needs, and its results, which `spec` puts together."""

    memory: BlockMemory
    results: tuple[Result, ...]
    spec: TreeSpec


@dataclass(frozen=True)
class Sample:
    """One block at one number of rows: what it needs, and tensors like its results."""

    measured: Measured
    results: list[Tensor]
    spec: TreeSpec


def kind_of(few: Sample, many: Sample) -> Kind:
    """Return the kind of a block that was measured at the two ROWS."""
    pairs = zip(few.results, many.results, strict=True)
    results = tuple(Result(a.shape, b.shape, a.dtype, a.requires_grad) for a, b in pairs)
    return Kind(BlockMemory.between(few.measured, many.measured), results, few.spec)


@dataclass
class Pass:
    """A pass over a model.

    Attributes:
        rows: of the micro-batch.
        recompute: whether blocks keep only their inputs.
        copies: autocast's copies of the weights of blocks that are recomputed.
        layer: the number of the next block.
        activations: the live bytes before the first loss.
        shards: the group of each block, if ranks keep parts of the weights.
        received: the buffer of the group that was gathered last, or ahead of its block.
        sent: the buffer of the gradients that were sent last.
        held: what stays until the end of the backward pass.
    """

    rows: int
    recompute: bool = False
    copies: list[Tensor] = field(default_factory=list)
    layer: int = 0
    activations: int = 0
    shards: list[Shards] = field(default_factory=list)
    received: Tensor | None = None
    sent: Tensor | None = None
    held: list[Tensor] = field(default_factory=list)

    def group(self, layer: int) -> Shards:
        """Return the group of a layer's block, which is empty outside of the model."""
        return self.shards[layer] if 0 <= layer < len(self.shards) else NOTHING


def stand_in(kind: Kind, now: Pass, tensors: list[Tensor], shared: list[Tensor], mask: Mask) -> Any:
    """Return the results of a block of this kind for its inputs and the weights that it shares.

    The mask is there until the block's backward pass.
    """
    # Weights may need a gradient where no input does.
    trigger = tensors[0].new_zeros((), dtype=torch.float32)
    trigger.requires_grad_(any(result.differentiable for result in kind.results))
    results = _StandIn.apply(*tensors, *shared, trigger, kind, now, mask)
    # Between two nodes that are written in Python there is one that is not (backward.py).
    apart = [result.view_as(result) for result in results]
    return tree_unflatten(apart, kind.spec)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, _, kind, now, ctx.mask = arguments  # the weights that are shared come last
        before, group = now.group(now.layer - 2), now.group(now.layer - 1)
        memory: BlockMemory = kind.memory
        ctx.memory, ctx.rows, ctx.recompute = memory, now.rows, now.recompute
        ctx.inputs = [(tensor.shape, tensor.dtype) for tensor in tensors]
        shared = tensors[len(memory.inputs_kept) :]
        ctx.sum = max(map(size_of, shared), default=0)
        ctx.device = tensors[0].device
        ctx.now, ctx.groups = now, (before, group)
        needed = most(memory.passing if now.recompute else memory.forward, now.rows)
        if now.shards:
            _room(ctx, group.arriving)
            now.received = None
            needed = max(group.copied_out, 2 * group.gathered + needed)
        _room(ctx, needed)
        keeps = zip(tensors, memory.inputs_kept, strict=False)
        ctx.save_for_backward(*(tensor for tensor, kept in keeps if kept or now.recompute))
        ctx.kept = None if now.recompute else _room(ctx, at(memory.kept, now.rows))
        if now.recompute and memory.copies:
            now.copies.append(_room(ctx, memory.copies))
        results, fixed = [], []
        for result in kind.results:
            made = torch.empty(result.shape(now.rows), dtype=result.dtype, device=ctx.device)
            results.append(made)
            if not result.differentiable:
                fixed.append(made)
        ctx.mark_non_differentiable(*fixed)
        if now.shards:
            now.received = _room(ctx, group.gathered)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        needed = most(ctx.memory.backward, ctx.rows)
        if ctx.recompute:
            kept = at(ctx.memory.kept, ctx.rows)
            needed = max(most(ctx.memory.again, ctx.rows), kept + needed)
        before, group = ctx.groups
        ctx.now.received = None  # it is counted as this group's
        # A gradient of a shared weight is added to that of other blocks before all is free.
        needed += ctx.sum + group.gathered + before.gathered
        _room(ctx, max(group.copied_out, needed))
        ctx.kept = ctx.mask = None
        found = [
            torch.empty(shape, dtype=dtype, device=ctx.device) if needs else None
            for (shape, dtype), needs in zip(ctx.inputs, ctx.needs_input_grad, strict=False)
        ]
        if group.summed:
            ctx.now.sent = None
            _room(ctx, before.gathered + group.leaving)
            ctx.now.sent = _room(ctx, group.summed)
            # Seen with torch's FSDPMemTracker, and not understood: with FSDP2, the gradients of a
            # block's other inputs stay until the backward pass has ended.
            others = [gradient for gradient in found[1:] if gradient is not None]
            ctx.now.held.append(_room(ctx, sum(map(size_of, others))))
        return *found, None, None, None, None


def _room(ctx: Any, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=ctx.device)
