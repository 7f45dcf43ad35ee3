"""Replay the step that continues texts as a CUDA graph: one launch in place of 25 for each layer.

A graph is captured for each shape of a step (fixed_step.py) that comes often enough. It is used
only after its first replay gave what the same operations give without a graph. Where a graph can't
be captured or is wrong, the steps are computed as without this module, and the log says why.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from pion.generation.fixed_step import LEAST_ENTRIES, FixedStep, Shape, shape_of
from pion.model.attention.cache import KVCache
from pion.model.block import Block
from pion.model.chunks_of_logits import compiled
from pion.model.cuda_graph import (
    LEAST_FREE,
    CudaGraph,
    free_memory,
    say_without,
    why_no_graph,
    words,
)
from pion.model.decoder import Decoder

# A shape is captured in its step of this number. Shorter texts end before a capture pays: it takes
# as long as some ten steps (assumed, not measured).
CAPTURED_STEP = 8
# So many graphs are kept. The one that was not used for the longest time makes room.
MOST_GRAPHS = 32
# The most that a logit of a replay may differ, as a share of the largest. The kernels are the same,
# but a library may split a product in another way while a graph is captured.
LIMIT = 1e-3
# The same of a compiled step, which rounds elsewhere (assumed, not measured on a card).
ROUNDING = 0.05
# The compiler takes all sizes of one number for the same, so this must not be the number of layers.
ANY_ROWS = 13
CONTINUED = "texts are continued without CUDA graphs"

# The hidden states (B, 1, d_model) and the fp32 logits (B, 1, vocab) of a step.
Results = tuple[Tensor, Tensor]


def why_without(model: Decoder) -> str | None:
    """Return why no step of this model can be a graph; None if steps may be."""
    if (why := why_no_graph(model, model.embed.weight.dtype)) is not None:
        return why
    if model.sharded:
        return "each step gathers the weights of a sharded model"
    if any(block.gate is not None and block.gate.skip_above is not None for block in model.layers):
        return "the host counts the tokens that skip a layer"
    return None


@dataclass
class _Captured:
    """A step of one shape and its graph, `proven` after a replay was compared."""

    step: FixedStep
    graph: CudaGraph[Results]
    proven: bool = False


class StepGraphs:
    """The graphs for steps of one model and one cache. A shape is captured in step `captured_step`.

    Attributes:
        refused: why no graph is used; None: graphs are used.
        captures, replays: how many there have been.
    """

    def __init__(self, model: Decoder, cache: KVCache, captured_step: int = CAPTURED_STEP) -> None:
        self._model, self._cache, self._captured_step = model, cache, captured_step
        self.refused = why_without(model)
        self.captures = self.replays = 0
        self._seen = Counter[Shape]()
        self._by_shape: dict[Shape, _Captured] = {}  # the last one was used last
        if self.refused is not None and model.embed.weight.is_cuda:
            say_without(CONTINUED, self.refused, logging.INFO)

    def step(self, tokens: Sequence[int]) -> Results | None:
        """Compute the next token of each of the first rows of the cache, and count it there.

        The results are there until the next step. None: nothing was counted, and the step must be
        computed without a graph.
        """
        # Autocast keeps casts of weights, which a graph would read when they are gone.
        if self.refused or torch.is_autocast_enabled(self._model.embed.weight.device.type):
            return None
        shape = shape_of(self._cache, len(tokens))
        self._seen[shape] += 1
        if self._seen[shape] < self._captured_step:
            return None
        try:
            results = self._computed(shape, tokens)
        except Exception as error:  # whatever torch, a driver or a kernel raises
            self._refuse(words(error))
            return None
        if results is not None:
            self._cache.grow(0, len(tokens), 1)
        return results

    def _computed(self, shape: Shape, tokens: Sequence[int]) -> Results | None:
        """Return what a replay gives: also where the step was computed to prove the graph, because
        the bits must not depend on how long this process lives."""
        captured = self._by_shape.pop(shape, None) or self._captured(shape, tokens)
        self._by_shape[shape] = captured
        captured.step.write(tokens)
        expected = None if captured.proven else captured.step.compute()
        results = captured.graph.replay()
        self.replays += 1
        if expected is not None:
            if not _largest_share(results[1], expected[1]) <= LIMIT:  # or there is a NaN
                self._refuse("a replayed step differs from the same step without a graph")
                return None
            captured.proven = True
        return results

    def _captured(self, shape: Shape, tokens: Sequence[int]) -> _Captured:
        device = self._model.embed.weight.device
        check_memory(device)
        # Graphs whose replays follow each other share memory.
        other = next(reversed(self._by_shape.values())).graph if self._by_shape else None
        if len(self._by_shape) >= MOST_GRAPHS:
            self._by_shape.pop(next(iter(self._by_shape)))
        step, graph = FixedStep(self._model, self._cache, shape), CudaGraph(device, other)
        step.write(tokens)
        graph.computed(step.compute)
        graph.capture(step.compute)
        self.captures += 1
        return _Captured(step, graph)

    def _refuse(self, why: str) -> None:
        self.refused = why
        self._by_shape.clear()
        say_without(CONTINUED, why, logging.WARNING)


def compile_steps(model: Decoder) -> None:
    """Compile what the steps of any shape compute before and after attention.

    Each structure of a block takes seconds, so this is for the start of a server. If it fails or
    gives other logits, blocks are computed as they are written, and the log says why. Attention is
    not compiled: it writes to the cache in place, and a compiler would copy the cache.
    """
    if why_without(model) is not None:
        return
    torch._dynamo.config.recompile_limit = 64  # blocks differ in a few structures
    compute = partial(Block.computed, by=partial(compiled, any_shape=True))
    cache = KVCache(model.config, min(LEAST_ENTRIES, model.config.seq_len), ANY_ROWS)
    model.hidden(model.embed.weight.new_ones(ANY_ROWS, 3).long(), cache=cache)
    try:
        for rows, fills in product((ANY_ROWS, 1), {False, cache.extra is not None}):
            model.step = None
            step = FixedStep(model, cache, shape_of(cache, rows)._replace(fills=fills))
            step.write([1] * rows)
            expected = step.compute()[1]
            model.step = compute
            if not _largest_share(step.compute()[1], expected) <= ROUNDING:
                raise ValueError("a compiled step differs from the step as it is written")
    except Exception as error:  # whatever torch, a driver or a compiler raises
        model.step = None
        why = words(getattr(error, "inner_exception", error))
        say_without("texts are continued without a compiled step", why, logging.WARNING)


def check_memory(device: torch.device) -> None:
    """Raise torch.OutOfMemoryError if too little memory is free to capture a graph."""
    free = free_memory(device)
    if free < LEAST_FREE:
        raise torch.OutOfMemoryError(
            f"{free >> 20} MiB of the GPU's memory are free, less than {LEAST_FREE >> 20}"
        )


def _largest_share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest element; NaN if there is one."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
