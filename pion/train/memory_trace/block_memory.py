"""What one block needs in a training step: its forward and backward pass on fake tensors.

A block that is not compiled keeps what autograd keeps. A compiled block is not compiled here: the
rule of torch's partitioner stands for it. Inductor computes everything but products and attention
in kernels that it fuses. What products and attention read and return is in memory anyway, so the
block keeps that, and computes again whatever else its backward pass reads.
"""

from __future__ import annotations

import itertools
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

    An origin is a tensor, here a number and its bytes, that is kept as it is. Without `fused`, each
    tensor is its own. With it, only what products and attention read and return is, and what is
    smaller than several origins: any other tensor is computed again from its origins.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self._fused, self._numbers = fused, itertools.count()
        self._of: weakref.WeakKeyDictionary[Any, dict[int, int]] = weakref.WeakKeyDictionary()
        self._origins: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        own = not self._fused or _is_product(func)
        read, needed = set(), dict[int, int]()
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            read.add(storage)
            if storage in self._of:
                if own:
                    self._keep(tensor)
                needed |= self._of[storage]
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in read:
                self._of[storage] = dict(needed)
                # Of a sum of several products, the sum is kept and not the products.
                if own or (len(needed) > 1 and sum(needed.values()) > size_of(tensor)):
                    self._keep(tensor)
            elif storage in self._of and storage not in self._origins:
                self._of[storage] |= needed  # a view, or written in place
        return result

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._origins:
            self._origins.add(storage)
            self._of[storage].clear()
            self._of[storage][next(self._numbers)] = size_of(tensor)

    def of(self, tensor: Tensor) -> dict[int, int] | None:
        """Return the bytes of a tensor's origins, by their numbers; None: it was there before."""
        return self._of.get(tensor.untyped_storage())


def measure_block(
    live: LiveBytes, run: Callable[[], list[Tensor]], *, compiled: bool
) -> BlockMemory:
    """Return what `run`, which returns a block's results, needs forward and backward.

    Gradients are added to those that the weights have already. What the forward pass keeps is only
    counted: the backward pass makes each tensor that it reads.
    """
    history, start, live.history = live.history, live.live, [live.live]
    origins, kept = Origins(fused=compiled), list[dict[int, int]]()

    def pack(tensor: Tensor) -> Any:
        found = origins.of(tensor)
        if found is None:
            return tensor.detach()
        kept.append(found)  # a product that reads the tensor later still changes it
        return tensor.shape, tensor.stride(), tensor.dtype, tensor.device

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        shape, stride, dtype, device = packed
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), origins:
        results = run()
    forward = max(live.history) - start
    roots = [root_of(each, torch.empty_like(each)) for each in results if each.requires_grad]
    made = sum(map(size_of, results)) + sum(size_of(gradient) for _, _, gradient in roots)
    copies = live.live - start - made
    del results
    torch.clear_autocast_cache()
    start, live.history = live.live, [live.live]
    run_backward(roots)
    backward = max(live.history) - start
    live.history = history
    every = {number: size for found in kept for number, size in found.items()}
    # A compiled block makes its copies of weights itself.
    return BlockMemory(sum(every.values()), 0 if compiled else copies, forward, backward)


def _is_product(operation: Any) -> bool:
    """Return whether inductor calls an operation, which is a product, attention or Pion's own."""
    name = operation._schema.name
    ours = not name.startswith(("aten::", "prim"))
    return ours or name.endswith("mm") or "attention" in name


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
