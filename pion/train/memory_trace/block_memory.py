"""What one block needs in a training step: its forward and backward pass on fake tensors.

A block that is not compiled keeps what autograd keeps. A compiled block is not compiled here: the
rule of torch's partitioner stands for it. Inductor computes everything but products and attention
in kernels that it fuses. What products and attention read and return is in memory anyway, so the
block keeps that, and computes again whatever else its backward pass reads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pion.train.memory_trace.backward import root_of, run_backward
from pion.train.memory_trace.live_bytes import LiveBytes, size_of


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
        if (found := origins.computed_again.get(tensor.untyped_storage())) is None:
            return tensor.detach()
        # A product that reads the tensor later still changes what was found.
        form = tensor.shape, tensor.stride(), tensor.storage_offset()
        return found, *form, tensor.dtype, tensor.device

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        found, shape, stride, offset, dtype, device = packed
        for itself in found:
            if isinstance(itself, Tensor):
                return itself.as_strided(shape, stride, offset)
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), origins:
        results = run()
    torch.clear_autocast_cache()
    forward = max(live.history) - start
    roots = [root_of(each, torch.empty_like(each)) for each in results if each.requires_grad]
    del results
    kept = live.live - start - sum(size_of(gradient) for _, _, gradient in roots)
    begin, live.history = live.live, [live.live]
    run_backward(roots)
    backward = max(live.history) - begin
    live.history = history
    return BlockMemory(kept, copies, max(0, forward - kept), backward)


def _is_product(operation: Any) -> bool:
    """Return whether inductor calls an operation, which is a product, attention or Pion's own."""
    name = operation._schema.name
    return not name.startswith(("aten::", "prim")) or name.endswith("mm") or "attention" in name


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
