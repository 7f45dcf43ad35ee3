"""Let inductor lower what the library compiles, on the pretended card.

Inductor writes one file of Python and Triton code for each graph. On a real card this file would be
loaded and run. Here the code is kept, and the graph's operations run on fake tensors instead, so a
training step goes on to its end and the backward passes are lowered, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch._dynamo.utils import (
    clear_compilation_metrics,
    counters,
    set_compilation_metrics_limit,
)
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch.cuda import graphs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget

from tests.cuda_rehearsal.kernel_bytes import bytes_of
from tests.cuda_rehearsal.pretended_card import CARD
from tests.cuda_rehearsal.watch import Watch

# Torch compiles a function at most this often, and then runs the function uncompiled. Here such a
# function is compiled again, so that each reason is seen.
MOST_COMPILES = 1000
LIMITS: dict[str, Any] = {
    "recompile_limit": MOST_COMPILES,
    "accumulated_recompile_limit": MOST_COMPILES,
}

# Padding a product is decided by a measurement of time, which a pretended card does not have.
SETTINGS: dict[str, Any] = {
    "force_disable_caches": True,
    "compile_threads": 1,
    "shape_padding": False,
}


@dataclass(frozen=True)
class Graph:
    """A forward or a backward pass that inductor lowered.

    `bytes_moved` is what the graph's kernels read and write (kernel_bytes.py). `launches` counts
    the kernels, those of libraries included.
    """

    source: str
    bytes_moved: int
    launches: int


@dataclass
class Lowered:
    """What was lowered so far.

    `entered` and `left`, if set, are called around each run of a graph.
    """

    graphs: list[Graph] = field(default_factory=list)
    entered: Callable[[Graph], None] = lambda graph: None
    left: Callable[[Graph], None] = lambda graph: None


@contextlib.contextmanager
def lowering() -> Iterator[Lowered]:
    """Lower what is compiled inside the `with` block, which is inside of `pretended_card`."""
    lowered = Lowered()
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any, create: bool = False) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=create))

        replace(GraphLowering, "compile_to_module", lambda graph: _keep(graph, lowered))
        # Dynamo leaves functions alone under a mode that does not say this.
        replace(Watch, "ignore_compile_internals", classmethod(lambda cls: True))
        replace(UniformValueConstantFolder, "_deduce_value", _fold_on_host)
        _answer_the_compiler(replace)
        stack.enter_context(torch._dynamo.config.patch(LIMITS))
        stack.enter_context(inductor_config.patch(SETTINGS))
        torch._dynamo.reset()
        set_compilation_metrics_limit(2 * MOST_COMPILES)  # forward and backward
        clear_compilation_metrics()
        counters.clear()
        yield lowered
        torch._dynamo.reset()


def _answer_the_compiler(replace: Callable[..., None]) -> None:
    """Replace what the compiler asks about streams and devices, and Triton's driver."""
    triton.runtime.driver.set_active(_Driver())
    # Dynamo would look up the current stream in C++.
    replace(torch.accelerator, "is_available", lambda: False)
    replace(graphs, "_cuda_isCurrentStreamCapturing", lambda: False)
    replace(torch.cuda, "_lazy_init", lambda: None)
    # Only builds that have found a driver have this function.
    replace(torch.cuda, "_get_device_properties", lambda device=None: CARD, create=True)
    for name in ("_exchange_device", "_maybe_exchange_device"):
        replace(torch.cuda, name, lambda device: 0)


class _Driver:
    """Triton's driver, as far as code is written for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * CARD.major + CARD.minor, CARD.warp_size)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda


def _keep(graph: GraphLowering, lowered: Lowered) -> Any:
    """Lower the graph; return what inductor takes for the module of its code."""
    code, _ = graph.codegen()
    kept = Graph(code.value, bytes_of(graph), _launches(graph))
    lowered.graphs.append(kept)

    def call(inputs: list[Any]) -> list[Any]:
        lowered.entered(kept)
        try:
            with torch.no_grad():
                # An interpreter keeps its last results, and autograd copies gradients that somebody
                # else keeps. So each call has its own.
                result = torch.fx.Interpreter(graph.orig_gm).run(*inputs)
        finally:
            inputs.clear()  # as inductor's code does, to free what nothing else holds
            lowered.left(kept)
        return list(result) if isinstance(result, tuple | list) else [result]

    return SimpleNamespace(call=call, __file__="", recursively_apply_fns=None, partitions=None)


def _launches(graph: GraphLowering) -> int:
    """Return the number of kernels that one run of the graph starts."""
    nodes = (node for node in graph.scheduler.nodes if not isinstance(node, NopKernelSchedulerNode))
    # One kernel of a library with several results has a node for each of them.
    return sum(not isinstance(node.node, ir.MultiOutput) for node in nodes)


class _OnHost(TorchDispatchMode):
    """Makes tensors on the host that would be made on the card."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def host(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) else value

        args, kwargs = tree_map(host, (args, kwargs or {}))
        return func(*args, **kwargs)


_deduce_value = UniformValueConstantFolder._deduce_value


def _fold_on_host(folder: Any, node: Any) -> Any:
    """Compute a constant of the graph. Inductor computes constants on the card, for real."""
    with _OnHost():
        return _deduce_value(folder, node)
