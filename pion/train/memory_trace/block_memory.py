"""What one block needs in a training step, measured on fake tensors at two numbers of rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pion.train.memory_trace.backward import add_gradient, root_of, run_backward
from pion.train.memory_trace.live_bytes import LiveBytes, size_of

# A dimension of one row has kernels of its own, so blocks are measured with more.
ROWS = (2, 3)


@dataclass(frozen=True)
class Measured:
    """One block at one number of rows, in bytes.

    Attributes:
        kept: kept for the backward pass, besides the block's inputs and results.
        copies: autocast's copies of weights, which are there until the forward pass ends. They are
            also in `kept`.
        inputs_kept: which of the input tensors are kept.
        forward: what was there after each allocation of the forward pass, besides the inputs.
        passing: the same of a forward pass that keeps nothing, as of a block to be recomputed.
        again: the same up to the last tensor that is kept, where recomputation stops, and with what
            the backward pass has made before it asks for one.
        backward: after each allocation of the backward pass, besides what was there at its start.
    """

    kept: int
    copies: int
    inputs_kept: tuple[bool, ...]
    forward: tuple[int, ...]
    passing: tuple[int, ...]
    again: tuple[int, ...]
    backward: tuple[int, ...]


class _Source(torch.autograd.Function):
    """Makes a new tensor that is no leaf: a leaf would live as long as the graph."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, like: Tensor) -> Tensor:
        return torch.empty_like(like)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


def measure_block(
    live: LiveBytes, run: Callable[[list[Tensor]], Any], given: list[Tensor]
) -> Measured:
    """Return what `run(given)` needs forward and backward. Gradients are added to those that the
    weights have already; those of other weights are there until the end."""
    history, live.history = live.history, []
    copies, passing = _keeping_nothing(live, run, given)
    trigger = torch.zeros((), device=given[0].device, requires_grad=True)
    before = live.live
    inputs = [_Source.apply(trigger, t) if t.requires_grad else torch.empty_like(t) for t in given]
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in inputs]
    sizes = [size_of(tensor) for tensor in inputs]
    stops, leads = [0], list[int]()
    start, live.history = live.live, []

    def pack(tensor: Tensor) -> Tensor:
        stops.append(len(live.history))
        return tensor.detach()  # a result that is kept by its own node would never be free

    def unpack(tensor: Tensor) -> Tensor:
        leads.append(live.live)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        results = [leaf for leaf in tree_leaves(run(inputs)) if isinstance(leaf, Tensor)]
    forward = tuple(now - start for now in live.history)
    roots = [root_of(r, torch.empty_like(r)) for r in results if r.requires_grad]
    gradients = sum(size_of(gradient) for _, _, gradient in roots)
    del results, inputs
    torch.clear_autocast_cache()
    inputs_kept = tuple(storage() is not None for storage in storages)
    of_inputs = sum(size for size, kept in zip(sizes, inputs_kept, strict=True) if kept)
    kept = live.live - before - gradients - of_inputs
    start, live.history = live.live, []
    run_backward(roots, add_gradient)
    backward = tuple(now - start for now in live.history)
    live.history = history
    # Recomputation begins when the backward pass asks for the first tensor that is kept.
    lead = leads[0] - start if leads else 0
    again = tuple(lead + now for now in forward[: max(stops)])
    return Measured(kept, copies, inputs_kept, forward, passing, again, backward)


def _keeping_nothing(
    live: LiveBytes, run: Callable[[list[Tensor]], Any], given: list[Tensor]
) -> tuple[int, tuple[int, ...]]:
    """Return autocast's copies, and what was there after each allocation, keeping nothing.

    The copies are there until the pass ends.
    """
    before, live.history = live.live, []
    with torch.no_grad():
        run(given)
    copies = live.live - before
    torch.clear_autocast_cache()
    return copies, tuple(now - before for now in live.history)


@dataclass(frozen=True)
class BlockMemory:
    """A block at any number of rows. A line is (bytes of no row, bytes of a row more)."""

    kept: tuple[int, int]
    copies: int
    inputs_kept: tuple[bool, ...]
    forward: tuple[tuple[int, int], ...]
    passing: tuple[tuple[int, int], ...]
    again: tuple[tuple[int, int], ...]
    backward: tuple[tuple[int, int], ...]

    @classmethod
    def between(cls, few: Measured, many: Measured) -> BlockMemory:
        """Return the lines through what was measured at the two ROWS."""
        return cls(
            kept=_line(few.kept, many.kept),
            copies=max(few.copies, many.copies),
            inputs_kept=tuple(map(max, few.inputs_kept, many.inputs_kept)),
            forward=_highest(few.forward, many.forward),
            passing=_highest(few.passing, many.passing),
            again=_highest(few.again, many.again),
            backward=_highest(few.backward, many.backward),
        )


def most(lines: tuple[tuple[int, int], ...], rows: int) -> int:
    """Return the most bytes of any line at so many rows."""
    return max((at(line, rows) for line in lines), default=0)


def at(line: tuple[int, int], rows: int) -> int:
    """Return the bytes of a line at so many rows."""
    fixed, each = line
    return max(0, fixed + each * rows)


def _line(few: int, many: int) -> tuple[int, int]:
    each = (many - few) // (ROWS[1] - ROWS[0])
    return few - ROWS[0] * each, each


def _highest(few: tuple[int, ...], many: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return the lines that are the highest at some number of rows."""
    if len(few) != len(many):  # a kernel for each row: only the largest can be compared
        few, many = (max(few, default=0),), (max(many, default=0),)
    # Of lines with the same slope, the highest; then those that no other is always above.
    lines = sorted({_line(a, b) for a, b in zip(few, many, strict=True)}, key=lambda p: p[::-1])
    kept: list[tuple[int, int]] = []
    for line in lines:
        kept = [other for other in kept if other[0] > line[0] or other[1] > line[1]]
        kept.append(line)
    return tuple(kept)
