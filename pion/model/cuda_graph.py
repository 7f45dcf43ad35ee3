"""Capture a computation as a CUDA graph, and replay it: one launch in place of hundreds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

import torch

from pion.model.decoder import Decoder
from pion.model.feedforward.expert_products import product_path

_log = logging.getLogger(__name__)

# So much of the GPU's memory stays free: for what kernels allocate inside themselves, and for
# prompts. How much memory a graph takes was not measured.
LEAST_FREE = 512 * 2**20
# Two threads that captured at the same time would disturb each other.
_capturing = threading.Lock()

Results = TypeVar("Results")


def why_no_graph(model: Decoder, dtype: torch.dtype) -> str | None:
    """Return why no pass of this model can be a graph; None if passes may be.

    Matrix products are in `dtype`.
    """
    device = model.embed.weight.device
    if device.type != "cuda":
        return f"a {device.type} has no CUDA graphs"
    if model.config.experts is not None:
        path = product_path("cuda", torch.cuda.get_device_capability(device), dtype)
        if path == "sliced":
            return (
                f"in {str(dtype).removeprefix('torch.')} on this card, the host must know how many "
                "tokens each expert has"
            )
    return None


def free_memory(device: torch.device) -> int:
    """Return how many bytes a capture may use: what torch keeps for later tensors is given back
    when the capture begins."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@cache
def say_without(what: str, why: str, level: int) -> None:
    """Log once in this process what is done without something, such as CUDA graphs, and why."""
    _log.log(level, "%s: %s", what, why)


def words(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


class CudaGraph(Generic[Results]):
    """The graph of a computation on `device`.

    It shares the memory of the `other` one, so neither may run while the other one does.
    """

    def __init__(self, device: torch.device, other: CudaGraph[Results] | None = None) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self._pool = None if other is None else other._graph.pool()
        self._stream: torch.cuda.Stream = (
            torch.cuda.Stream(device) if other is None else other._stream
        )
        self._results: Results | None = None

    def computed(self, compute: Callable[[], Results]) -> Results:
        """Compute without a graph, on the stream that captures.

        Kernels and tables that belong to a stream are made now. A capture may make none.
        """
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            results = compute()
        here.wait_stream(self._stream)
        return results

    def capture(self, compute: Callable[[], Results]) -> None:
        """Capture what `compute` does. Only a replay computes it."""
        here = torch.cuda.current_stream(self._device)
        # A capture that fails may leave the other stream. "thread_local": other threads, such as
        # the one that saves and those of another model, may use the GPU.
        with (
            _capturing,
            torch.cuda.stream(here),
            torch.cuda.graph(
                self._graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ),
        ):
            self._results = compute()

    def replay(self) -> Results:
        """Compute by the graph. The results are overwritten by the next replay."""
        assert self._results is not None
        self._graph.replay()
        return self._results
