"""What one block needs in a training step, and a stand-in that takes and frees as many bytes.

A block's forward and backward pass is measured on fake tensors. A block that is not compiled keeps
what autograd keeps. A compiled block is not compiled here: the rule of torch's partitioner stands
for it. Inductor computes everything but products and attention in kernels that it fuses. What
products and attention read and return is in memory anyway, so the block keeps that, and computes
again whatever else its backward pass reads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from pion.model.attention.masks import Mask
from pion.train.memory_trace.backward import root_of, run_backward
from pion.train.memory_trace.live_bytes import LiveBytes, size_of
from pion.train.memory_trace.shards import NOTHING, Shards


@dataclass(frozen=True)
class BlockMemory:
    """The bytes of one block at so many rows.

    Attributes:
        kept: kept for the backward pass, besides the block's inputs and results.
        copies: autocast's copies of weights, which are there until the forward pass ends. They are
            also in `kept`.
        forward: the most in the forward pass, besides what is kept.
        backward: the most in the backward pass, besides what is kept.
    """

    kept: int
    copies: int
    forward: int
    backward: int


class Origins(TorchDispatchMode):
    """Of each tensor, what has to be kept to have the tensor in the backward pass.

    An origin is a storage that is kept as it is. Without `fused`, each new tensor is one. With it,
    only what products and attention read and return is, and what is smaller than several origins:
    any other tensor is computed again from its origins.

    Attributes:
        computed_again: the origins of each storage that is computed again. A tensor among them is
            the storage itself, which is kept since a product has read it.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self._fused = fused
        self.computed_again: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()
        self._origins: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        own = not self._fused or _is_product(func)
        read, needed = set(), set[Any]()
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            read.add(storage)
            found = self.computed_again.get(storage, set())
            if own and storage in self.computed_again:
                # It is kept as it is, also for nodes that would have computed it again.
                found.clear()
                found.add(tensor.detach())
                del self.computed_again[storage]
                self._origins.add(storage)
            needed |= {storage} if storage in self._origins else found
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in read:
                # Of a sum of several products, the sum is kept and not the products.
                parts = sum(origin.nbytes() for origin in needed) if len(needed) > 1 else 0
                if own or parts > size_of(tensor):
                    self._origins.add(storage)
                else:
                    self.computed_again[storage] = needed.copy()
            elif storage in self.computed_again:
                self.computed_again[storage] |= needed  # a view, or written in place
        return result


def measure_block(
    live: LiveBytes, run: Callable[[], list[Tensor]], *, compiled: bool
) -> BlockMemory:
    """Return what `run`, which returns a block's results, needs forward and backward.

    Gradients are added to those that the weights have already.
    """
    history, start, live.history = live.history, live.live, [live.live]
    if not compiled:  # else the block makes its copies of weights itself
        with torch.no_grad():
            run()
    copies = live.live - start
    torch.clear_autocast_cache()
    origins = Origins(fused=compiled)

    def pack(tensor: Tensor) -> Any:
        if (origin := origins.computed_again.get(tensor.untyped_storage())) is None:
            return tensor.detach()
        # A product that reads the tensor later still changes what was found.
        form = tensor.shape, tensor.stride(), tensor.storage_offset()
        return origin, *form, tensor.dtype, tensor.device

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        origin, shape, stride, offset, dtype, device = packed
        for itself in origin:
            if isinstance(itself, Tensor):
                return itself.as_strided(shape, stride, offset)
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), origins:
        results = run()
    torch.clear_autocast_cache()
    forward = max(live.history) - start
    roots = [root_of(each, torch.empty_like(each)) for each in results if each.requires_grad]
    del results
    retained = live.live - start - sum(size_of(gradient) for _, _, gradient in roots)
    begin, live.history = live.live, [live.live]
    run_backward(roots)
    backward = max(live.history) - begin
    live.history = history
    return BlockMemory(retained, copies, max(0, forward - retained), backward)


def _is_product(operation: Any) -> bool:
    """Return whether inductor calls an operation, which is a product, attention or Pion's own."""
    name = operation._schema.name
    return not name.startswith(("aten::", "prim")) or name.endswith("mm") or "attention" in name


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


# ---------------------------------------------------------------- its stand-in


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
        *tensors, trigger, kind, now, mask, inputs = arguments
        memory, before, group = kind.memory, now.group(now.layer - 1), now.group(now.layer)
        ctx.memory, ctx.now, ctx.mask, ctx.groups = memory, now, mask, (before, group)
        ctx.given = [(tensor.shape, tensor.dtype) for tensor in tensors[:inputs]]
        ctx.sum = max(map(size_of, tensors[inputs:]), default=0)
        ctx.device = trigger.device
        ctx.save_for_backward(*tensors[:inputs])
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
