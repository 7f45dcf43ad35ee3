"""Assemble the Triton kernels in inductor's code for a card: Triton compiles, ptxas assembles."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_heuristics, triton_helpers

from tests.cuda_rehearsal.lowering import Graph
from tests.cuda_rehearsal.pretended_card import CARDS

_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', r?'''(.*?)'''", re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    """A kernel in one of the configurations that inductor would time on the card.

    `shared` is the shared memory in bytes. `error` says why the kernel can't run; None if it can.
    """

    name: str
    configuration: str
    shared: int
    error: str | None


def triton_sources(graph: Graph) -> list[tuple[str, str]]:
    """Return each Triton kernel in the graph's code: its name, and the source of a module."""
    return _KERNEL.findall(graph.source)


class Assembler:
    """Assembles each kernel for the card of this name once. `every`: in every configuration."""

    def __init__(self, card: str, *, every: bool) -> None:
        self._card, self._every = CARDS[card], every
        self._done: set[str] = set()

    def assemble(self, graph: Graph) -> Iterator[Kernel]:
        """Yield the graph's kernels that no earlier graph had."""
        for name, source in triton_sources(graph):
            nameless = source.replace(name, "")
            if nameless not in self._done:
                self._done.add(nameless)
                yield from self.assemble_source(name, source)

    def assemble_source(self, name: str, source: str) -> Iterator[Kernel]:
        """Yield the kernel `name` of a module that inductor wrote."""
        with _without_driver():
            kernel = getattr(PyCodeCache.load(source), name)
        for configuration in kernel.configs if self._every else kernel.configs[:1]:
            shared, error = 0, None
            try:
                shared = self._shared_memory(kernel, configuration)
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
            most = self._card.shared_kib * 1024
            if shared > most:
                error = f"{shared} bytes of shared memory; the card has {most} for a block"
            yield Kernel(name, str(configuration), shared, error)

    def _shared_memory(self, kernel: Any, configuration: Any) -> int:
        """Assemble the kernel; return how much shared memory it needs."""
        with _without_driver():
            result = kernel._precompile_config(configuration, cc_override=self._card.architecture)
        metadata: Any = getattr(result.kernel, "metadata", result.kernel)
        shared: int = metadata.shared
        return shared


@contextlib.contextmanager
def _without_driver() -> Iterator[None]:
    """Keep Triton away from the card's driver. What fails is reported, so it is not logged, too."""
    with (
        mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
        mock.patch.object(triton_heuristics.log, "disabled", True),
    ):
        yield
