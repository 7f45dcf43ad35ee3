"""Replay the step that continues texts as a CUDA graph: one launch in place of 25 for each layer.

A graph is captured for each shape of a step (fixed_step.py) that comes often enough. It is used
only after its first replay gave what the same operations give without a graph. Where a graph can't
be captured or is wrong, the steps are computed as without this module, and the log says why.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from pion.generation.fixed_step import FixedStep, Shape, shape_of
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.feedforward.expert_products import product_path

_log = logging.getLogger(__name__)

# A shape is captured in its step of this number. Shorter texts end before a capture pays: it takes
# as long as some ten steps (assumed, not measured).
CAPTURED_STEP = 8
# So many graphs are kept. The one that was not used for the longest time makes room.
MOST_GRAPHS = 32
# The most that a logit of a replay may differ, as a share of the largest. The kernels are the same,
# but a library may split a product in another way while a graph is captured.
LIMIT = 1e-3
# Nothing is captured if less of the GPU's memory is free: prompts need it more. How much memory a
# graph takes was not measured.
LEAST_FREE = 512 * 2**20
# Two threads that captured at the same time would disturb each other.
_capturing = threading.Lock()


# The hidden states (B, 1, d_model) and the fp32 logits (B, 1, vocab) of a step.
Results = tuple[Tensor, Tensor]


def why_without(model: Decoder) -> str | None:
    """Return why no step of this model can be a graph; None if steps may be."""
    device = model.embed.weight.device
    if device.type != "cuda":
        return f"a {device.type} has no CUDA graphs"
    if model.sharded:
        return "each step gathers the weights of a sharded model"
    if any(block.gate is not None and block.gate.skip_above is not None for block in model.layers):
        return "the host counts the tokens that skip a layer"
    if model.config.feedforward == "experts":
        capability = torch.cuda.get_device_capability(device)
        dtype = model.layers[0].feedforward.get_parameter("gate_proj").dtype
        if product_path("cuda", capability, dtype) == "sliced":
            return (
                f"in {str(dtype).removeprefix('torch.')} on this card, the host must know how many "
                "tokens each expert has"
            )
    return None


@cache
def _say(why: str, level: int) -> None:
    """Log once in this process why graphs are not used."""
    _log.log(level, "texts are continued without CUDA graphs: %s", why)


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
        self._by_shape: dict[Shape, _StepGraph] = {}  # the last one was used last
        if self.refused is not None and model.embed.weight.is_cuda:
            _say(self.refused, logging.INFO)

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
            first = str(error).strip().partition("\n")[0]
            self._refuse(f"{type(error).__name__}: {first[:200]}")
            return None
        if results is not None:
            self._cache.grow(0, len(tokens), 1)
        return results

    def _computed(self, shape: Shape, tokens: Sequence[int]) -> Results | None:
        graph = self._by_shape.pop(shape, None)
        if graph is None:
            return self._captured(shape, tokens)
        self._by_shape[shape] = graph
        results = graph.replay(tokens)
        self.replays += 1
        if not graph.proven:
            expected = graph.step.compute()
            if not _largest_share(results[1], expected[1]) <= LIMIT:  # or there is a NaN
                self._refuse("a replayed step differs from the same step without a graph")
                return None
            graph.proven = True
            return expected
        return results

    def _captured(self, shape: Shape, tokens: Sequence[int]) -> Results:
        others = list(self._by_shape.values())
        if len(others) >= MOST_GRAPHS:
            self._by_shape.pop(next(iter(self._by_shape)))
        graph = _StepGraph(self._model, self._cache, shape)
        results = graph.capture(tokens, others[-1] if others else None)
        self.captures += 1
        self._by_shape[shape] = graph
        return results

    def _refuse(self, why: str) -> None:
        self.refused = why
        self._by_shape.clear()
        _say(why, logging.WARNING)


class _StepGraph:
    """The graph of one shape. It is `proven` after a replay was compared."""

    def __init__(self, model: Decoder, cache: KVCache, shape: Shape) -> None:
        self._device = model.embed.weight.device
        self.step = FixedStep(model, cache, shape)
        self._graph = torch.cuda.CUDAGraph()
        self._stream: torch.cuda.Stream | None = None
        self._results: Results | None = None
        self.proven = False

    def capture(self, tokens: Sequence[int], other: _StepGraph | None) -> Results:
        """Compute a step, capture it, and return the results of the computed one.

        Graphs whose replays follow each other share the memory of the `other` one.
        """
        check_memory(self._device)
        with _capturing, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            side = torch.cuda.Stream() if other is None else other._stream
            assert side is not None
            self._stream = side
            with torch.cuda.stream(here):  # a capture that fails may leave the other stream
                self.step.write(tokens)
                side.wait_stream(here)
                # Kernels are loaded and tables are made now. A capture may do neither.
                with torch.cuda.stream(side):
                    results = self.step.compute()
                here.wait_stream(side)
                # "thread_local": other threads, such as those of another model, may use the GPU.
                with torch.cuda.graph(
                    self._graph,
                    pool=None if other is None else other._graph.pool(),
                    stream=side,
                    capture_error_mode="thread_local",
                ):
                    self._results = self.step.compute()
        return results

    def replay(self, tokens: Sequence[int]) -> Results:
        """Compute a step by the graph. The results are overwritten by the next replay."""
        assert self._results is not None
        self.step.write(tokens)
        self._graph.replay()
        return self._results


def check_memory(device: torch.device) -> None:
    """Raise torch.OutOfMemoryError if too little memory is free to capture a graph."""
    free = torch.cuda.mem_get_info(device)[0]
    # What torch keeps for later tensors is given back when a capture begins.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if free < LEAST_FREE:
        raise torch.OutOfMemoryError(
            f"{free >> 20} MiB of the GPU's memory are free, less than {LEAST_FREE >> 20}"
        )


def _largest_share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest element; NaN if there is one."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
