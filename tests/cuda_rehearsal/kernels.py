"""Assemble the Triton kernels in inductor's code for a card: Triton compiles, ptxas assembles."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers, triton_heuristics

from tests.cuda_rehearsal.lowering import Graph
from tests.cuda_rehearsal.pretended_card import CardModel

_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', r?'''(.*?)'''", re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    """A kernel in the first of its configurations that the card can run.

    `shared` is its shared memory in bytes. If the card can run none, `error` says why not the last.
    `fallback`: the configuration is the one without pipelining, which inductor tries at the end.
    """

    name: str
    configuration: str
    shared: int
    error: str | None
    fallback: bool = False


def triton_sources(graph: Graph) -> list[tuple[str, str]]:
    """Return each Triton kernel in the graph's code: its name, and the source of a module."""
    return _KERNEL.findall(graph.source)


class Assembler:
    """Assembles each kernel for the card once."""

    def __init__(self, card: CardModel) -> None:
        self._card = card
        self._done: set[str] = set()

    def assemble(self, graph: Graph) -> Iterator[Kernel]:
        """Yield the graph's kernels that no earlier graph had."""
        for name, source in triton_sources(graph):
            nameless = source.replace(name, "")
            if nameless not in self._done:
                self._done.add(nameless)
                yield self.assemble_source(name, source)

    def assemble_source(self, name: str, source: str) -> Kernel:
        """Return the kernel `name` of a module that inductor wrote.

        Inductor would time all configurations that the card can run, and leave out the others.
        """
        with _without_driver():
            kernel = getattr(PyCodeCache.load(source), name)
        for configuration in kernel.configs:
            found = self._try(kernel, configuration)
            if found.error is None:
                return found
        unpipelined = _without_pipelining(kernel.configs[-1])
        if unpipelined is None or not found.shared:
            return found
        return dataclasses.replace(self._try(kernel, unpipelined), fallback=True)

    def _try(self, kernel: Any, configuration: Any) -> Kernel:
        """Assemble the kernel in a configuration."""
        name, shared, error = kernel.fn.__name__, 0, None
        try:
            shared = self._shared_memory(kernel, configuration)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        most = self._card.shared_kib * 1024
        if shared > most:
            error = f"{shared} bytes of shared memory; the card has {most} for a block"
        return Kernel(name, str(configuration), shared, error)

    def _shared_memory(self, kernel: Any, configuration: Any) -> int:
        """Assemble the kernel; return how much shared memory it needs."""
        with _without_driver():
            result = kernel._precompile_config(configuration, cc_override=self._card.architecture)
        metadata: Any = getattr(result.kernel, "metadata", result.kernel)
        shared: int = metadata.shared
        return shared


def _without_pipelining(configuration: Any) -> Any:
    """Return the configuration that reads no data ahead; None if this one reads none."""
    changed = copy.deepcopy(configuration)
    changed.num_stages = 1
    if "NUM_STAGES" in changed.kwargs:
        changed.kwargs["NUM_STAGES"] = 1
    return None if str(changed) == str(configuration) else changed


@contextlib.contextmanager
def _without_driver() -> Iterator[None]:
    """Keep Triton away from the card's driver. What fails is reported, so it is not logged, too."""
    with (
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
        mock.patch.object(triton_heuristics.log, "disabled", True),
    ):
        yield
