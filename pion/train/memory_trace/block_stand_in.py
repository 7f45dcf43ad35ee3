"""A block that computes nothing: it takes and frees the bytes that were measured of a real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from pion.model.attention.masks import Mask
from pion.train.memory_trace.block_memory import BlockMemory
from pion.train.memory_trace.live_bytes import size_of
from pion.train.memory_trace.shards import NOTHING, Shards


@dataclass(frozen=True)
class Kind:
    """Blocks of one structure: what each needs, and tensors like its results, which `spec` puts
    together."""

    memory: BlockMemory
    results: list[Tensor]
    spec: TreeSpec


@dataclass
class Pass:
    """A pass over a model.

    Attributes:
        recompute: whether blocks keep only their inputs.
        copies: autocast's copies of the weights of blocks that are recomputed.
        layer: the number of the next block.
        activations: the live bytes before the first loss.
        shards: the group of each block, if ranks keep parts of the weights.
        received: the buffer of the group that was gathered last, or ahead of its block.
        sent: the buffer of the gradients that were sent last.
        held: what stays until the end of the backward pass.
    """

    recompute: bool
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
    trigger.requires_grad_(any(result.requires_grad for result in kind.results))
    results = _StandIn.apply(*tensors, *shared, trigger, kind, now, mask, len(tensors))
    now.layer += 1
    # Between two nodes that are written in Python there is one that is not (backward.py).
    return tree_unflatten([result.view_as(result) for result in results], kind.spec)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        # Tensors come first: a node has edges for them only, in their order.
        *given, trigger, kind, now, mask, inputs = arguments
        memory, before, group = kind.memory, now.group(now.layer - 1), now.group(now.layer)
        ctx.memory, ctx.now, ctx.mask, ctx.groups = memory, now, mask, (before, group)
        ctx.given = [(tensor.shape, tensor.dtype) for tensor in given[:inputs]]
        ctx.sum = max(map(size_of, given[inputs:]), default=0)
        ctx.device = trigger.device
        ctx.save_for_backward(*given[:inputs])
        ctx.kept = _room(ctx, memory.kept)
        needed = memory.forward
        if now.shards:
            _room(ctx, group.arriving)
            now.received = None
            needed = max(group.copied_out, 2 * group.gathered + needed)
        _room(ctx, needed)
        if now.recompute:
            ctx.kept = None  # a compiled block returns what it keeps, and then it is dropped
            now.copies.append(_room(ctx, memory.copies))
        results = tuple(torch.empty_like(like, device=ctx.device) for like in kind.results)
        fixed = [r for r, like in zip(results, kind.results, strict=True) if not like.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        if now.shards:
            now.received = _room(ctx, group.gathered)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        memory, now, (before, group) = ctx.memory, ctx.now, ctx.groups
        needed = memory.backward
        if now.recompute:
            needed = memory.kept + max(memory.forward, needed)
        now.received = None  # it is counted as this group's
        # A gradient of a shared weight is added to that of other blocks before all is free.
        needed += ctx.sum + group.gathered + before.gathered
        _room(ctx, max(group.copied_out, needed))
        ctx.kept = ctx.mask = None
        found = [
            torch.empty(shape, dtype=dtype, device=ctx.device) if needs else None
            for (shape, dtype), needs in zip(ctx.given, ctx.needs_input_grad, strict=False)
        ]
        if group.summed:
            now.sent = None
            _room(ctx, before.gathered + group.leaving)
            now.sent = _room(ctx, group.summed)
            # Seen with torch's FSDPMemTracker, and not understood: with FSDP2, the gradients of a
            # block's other inputs stay until the backward pass has ended.
            others = [gradient for gradient in found[1:] if gradient is not None]
            now.held.append(_room(ctx, sum(map(size_of, others))))
        return *found, *[None] * (len(ctx.needs_input_grad) - len(found))


def _room(ctx: Any, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=ctx.device)
