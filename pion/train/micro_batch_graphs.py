"""Replay a micro-batch's forward and backward pass as a CUDA graph: one launch for a thousand.

Two graphs are captured. The first writes the gradients of a step, and the other adds to them. A
graph is used only after its first replay gave what the same operations gave without a graph. Where
a graph can't be captured or is wrong, micro-batches are computed as without this module, and the
log says why. Clipping, the update and all measurements are never in a graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from pion.data.stream import Batch, map_batch
from pion.errors import PionError
from pion.model.attention.rope import tables_of
from pion.model.cuda_graph import (
    LEAST_FREE,
    CudaGraph,
    free_memory,
    say_without,
    why_no_graph,
    words,
)
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.train.objective import CrossEntropy, Measured, Objective

# Of the norm of a gradient, the most that a replay may differ where kernels need not be
# deterministic (assumed, not measured). A lost or doubled gradient makes 1.
LIMIT = 0.02
# The gradient of a few numbers is a sum over all tokens, of which rounding may leave nothing.
FEW_NUMBERS = 64

# Adds the gradients of a micro-batch on the model's device, and returns its results.
Compute = Callable[[Batch, Objective, StepOptions], Measured]


def why_without(
    model: Decoder, objective: Objective, dtype: torch.dtype, world_size: int
) -> str | None:
    """Return why no micro-batch can be a graph; None if micro-batches may be.

    Matrix products are in `dtype`.
    """
    if (why := why_no_graph(model, dtype)) is not None:
        return why
    if world_size > 1:
        return "the ranks exchange gradients during the backward pass"
    if not isinstance(objective, CrossEntropy):
        return "only a loss of target tokens is captured"
    return why_no_room(model.embed.weight.device)


def why_no_room(device: torch.device) -> str | None:
    """Return why the memory of a device is too small for graphs; None if there is room.

    Ask between two steps. A graph keeps the memory of its pass. An update, an evaluation and a
    micro-batch of another shape need memory next to it: at most as much as a whole step, which is
    what was allocated at once in this process.
    """
    state = torch.cuda.memory_allocated(device)
    step = torch.cuda.max_memory_allocated(device) - state
    free = free_memory(device)
    if free >= 2 * step + LEAST_FREE:
        return None
    return (
        f"{free >> 20} MiB of the GPU's memory are free, and a graph next to a step needs "
        f"{(2 * step + LEAST_FREE) >> 20}"
    )


class MicroBatchGraphs:
    """The graphs for the micro-batches of one model, all of one shape and one way to compute.

    Where a phase of the run reads rows of another length or with other angles, new graphs begin.

    The weights must stay where they are: whoever changes their values does so in place.

    Attributes:
        refused: why no graph is used; None: graphs are used, from the second step on.
        replays: how many there have been, without the first of each graph.
    """

    def __init__(self, model: Decoder, dtype: torch.dtype, world_size: int) -> None:
        self._why_without = partial(why_without, model, dtype=dtype, world_size=world_size)
        self._model, self._device = model, model.embed.weight.device
        self._params = list(model.parameters())  # after a capture: those that it has gradients for
        self._tables: Any = None  # graphs read them, and they may leave the cache that has them
        self.refused: str | None = None
        self.replays = 0
        self._met = self._warm = False  # whether there was a micro-batch: at all, before this step
        self._alike: Any = None  # what the micro-batches have in common
        self._static: tuple[Batch, CrossEntropy] | None = None  # what graphs read
        self._graphs: dict[bool, CudaGraph[Measured]] = {}  # by whether a graph adds to gradients
        # The gradients of the parameters, in the memory of the graph that writes them.
        self._gradients: list[Any] = []

    def begin(self) -> None:
        """Begin a step. The first one has no graphs: it compiles, and shows what a step needs."""
        self._warm = self._met

    def add(
        self, batch: Batch, objective: Objective, options: StepOptions, compute: Compute
    ) -> Measured | None:
        """Do by a graph what `compute` does with a micro-batch, which is in host memory here.

        The results are there until the next call. None: nothing was done.
        """
        self._met = True
        # Autocast keeps its casts of weights until its outermost block ends. In a graph, this is
        # the block inside the pass. Around a graph, it would be one whose casts no replay renews.
        outside = torch.is_autocast_enabled(self._device.type)
        if self.refused or not self._warm or options.parts or outside:
            return None
        if self._static is None and (why := self._why_without(objective)) is not None:
            self._refuse(why, logging.INFO if self._device.type == "cuda" else logging.DEBUG)
            return None
        assert isinstance(objective, CrossEntropy)
        alike = options, self._model.config, map_batch(attrgetter("shape"), batch)
        adds = self._adds()
        if self._static is not None and adds is False and alike[1:] != self._alike[1:]:
            # The first micro-batch of a step is of another phase, which may have rows of another
            # length, or other angles. This step has no graphs, as the first one had none.
            self._forget()
            self._warm = False
            return None
        if self._static is None:
            self._params = list(self._model.parameters())
            self._tables = tables_of(self._model.config, self._device)
            empty = partial(torch.empty_like, device=self._device)
            self._static = map_batch(empty, batch), CrossEntropy(empty(objective.scale))
            self._alike = alike
        if adds is None or alike != self._alike:
            return None
        for own, there in zip(_tensors(batch, objective), _tensors(*self._static), strict=True):
            there.copy_(own, non_blocking=True)
        if adds not in self._graphs:
            return self._captured(adds, partial(compute, *self._static, options))
        found = self._graphs[adds].replay()
        self._give(self._gradients)
        self.replays += 1
        return found

    def give_up(self, error: Exception) -> bool:
        """Use no graphs any more, after `error` ended a step; return whether some were used.

        Without them, the step may work: they keep memory.
        """
        if self._static is None or isinstance(error, PionError):
            return False
        self._refuse(words(error), logging.WARNING)
        return True

    def _adds(self) -> bool | None:
        """Return whether there are gradients to add to; None: they are not those of a graph."""
        held, own = [param.grad for param in self._params], self._gradients
        if all(gradient is None for gradient in held):
            return False
        return True if own and all(a is b for a, b in zip(held, own, strict=True)) else None

    def _captured(self, adds: bool, compute: Callable[[], Measured]) -> Measured:
        """Compute a micro-batch, capture it, and compare its first replay with what was computed.

        If they are not alike, the gradients are the computed ones.
        """
        graph = CudaGraph(self._device, self._graphs.get(False))
        self._give([gradient.clone() for gradient in self._gradients] if adds else [])
        measured = graph.computed(compute)
        if not adds:
            self._params = [param for param in self._params if param.grad is not None]
        expected = [param.grad for param in self._params]
        self._give(self._gradients if adds else [])
        try:
            graph.capture(compute)
            if not adds:
                self._gradients = [param.grad for param in self._params]
            found = [graph.replay().loss, *self._gradients]
            if not _equal(found, [measured.loss, *expected]):
                raise ValueError("a replayed micro-batch differs from one without a graph")
        except Exception as error:  # whatever torch, a driver or a kernel raises
            self._refuse(words(error), logging.WARNING)
            self._give(expected)
            return measured
        self._graphs[adds] = graph
        return measured

    def _give(self, gradients: list[Any]) -> None:
        """Set the gradients of the parameters; none: there are no gradients yet."""
        for param, gradient in zip(self._params, gradients or [None] * len(self._params)):
            param.grad = gradient

    def _refuse(self, why: str, level: int) -> None:
        self.refused = why
        self._forget()
        say_without("micro-batches are computed without CUDA graphs", why, level)

    def _forget(self) -> None:
        """Free what graphs keep."""
        self._static, self._gradients = None, []
        self._graphs.clear()


def _tensors(batch: Batch, objective: CrossEntropy) -> list[Tensor]:
    given = batch.tokens, batch.targets, batch.positions, batch.documents, objective.scale
    return [tensor for tensor in given if tensor is not None]


def _equal(found: list[Any], expected: list[Any]) -> bool:
    """Return whether a loss and the gradients after it are equal, but for rounding.

    Where kernels have to be deterministic, all bits are equal. Elsewhere, a kernel may add up in
    another order each time, with a graph and without.
    """
    if torch.are_deterministic_algorithms_enabled():
        return all(map(torch.equal, found, expected))
    shares = [
        (a - b).norm() / b.norm().clamp(min=torch.finfo(torch.float32).tiny)
        for a, b in zip(found, expected, strict=True)
        if a is found[0] or b.numel() >= FEW_NUMBERS
    ]
    return bool((torch.stack(shares) <= LIMIT).all())  # not if there is a NaN
