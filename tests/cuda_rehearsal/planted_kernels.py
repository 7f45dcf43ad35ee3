"""Plant mistakes that make a compile fail on a card, one at a time.

test_kernels.py says how each must be found.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pion.model.feedforward.dense import SwiGLU
from pion.model.norm_and_projection import RMSNorm
from tests.cuda_rehearsal.compiled import SUITE, Case, Outcome, compile_case
from tests.cuda_rehearsal.kernels import Assembler, triton_sources
from tests.cuda_rehearsal.lowering import Graph
from tests.cuda_rehearsal.pretended_card import CARDS, CardModel
from tests.cuda_rehearsal.watch import Watch


def break_the_graph(watch: Watch) -> Outcome:
    """Let a part of a block stay uncompiled."""
    right = SwiGLU.forward

    def forward_with_a_break(self: SwiGLU, x: Tensor, inputs: Any) -> Any:
        torch._dynamo.graph_break()
        return right(self, x, inputs)

    with mock.patch.object(SwiGLU, "forward", forward_with_a_break):
        return compile_case(watch, Case(SUITE["dense"]), trace_only=True)[0]


def tell_layers_apart(watch: Watch) -> Outcome:
    """Let each norm have a number of its own, on which its compiled code depends."""
    init, forward, numbers = RMSNorm.__init__, RMSNorm.forward, itertools.count(1)

    def init_with_a_number(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self.number = float(next(numbers))

    def forward_with_the_number(self: Any, x: Tensor) -> Tensor:
        scaled: Tensor = forward(self, x) * self.number
        return scaled

    with (
        mock.patch.object(RMSNorm, "__init__", init_with_a_number),
        mock.patch.object(RMSNorm, "forward", forward_with_the_number),
    ):
        return compile_case(watch, Case(SUITE["dense"]), trace_only=True)[0]


def confuse_shapes(watch: Watch) -> Outcome:
    """Let a block multiply matrices that do not fit together."""
    right = SwiGLU.forward

    def forward_with_wrong_width(self: SwiGLU, x: Tensor, inputs: Any) -> Any:
        return right(self, x[..., 1:], inputs)

    with mock.patch.object(SwiGLU, "forward", forward_with_wrong_width):
        return compile_case(watch, Case(SUITE["dense"]), trace_only=True)[0]


COMPILED: dict[str, Callable[[Watch], Outcome]] = {
    "a block breaks the graph": break_the_graph,
    "each layer is compiled": tell_layers_apart,
    "a block multiplies matrices of wrong shapes": confuse_shapes,
}


@dataclass(frozen=True)
class PlantedKernel:
    """A replacement in the source of a kernel, by the beginning of its name; or a smaller card."""

    prefix: str
    right: str = ""
    wrong: str = ""
    card: CardModel = CARDS["A40"]


ASSEMBLED: dict[str, PlantedKernel] = {
    "attention needs more shared memory than a card has": PlantedKernel(
        "triton_tem_fused_flex_attention_backward",
        card=dataclasses.replace(CARDS["A40"], shared_kib=16),
    ),
    "ptxas does not know an instruction": PlantedKernel(
        "triton_per_fused",
        "    xmask = ",
        '    tl.inline_asm_elementwise("nonsense.b32 $0, $1;", "=r,r", [xindex],'
        " dtype=tl.int32, is_pure=False, pack=1)\n    xmask = ",
    ),
    "Triton does not know a function": PlantedKernel("triton_poi_fused", "tl.load(", "tl.lode("),
}


def plant_in_kernel(name: str, graphs: list[Graph]) -> Outcome:
    """Make a mistake of ASSEMBLED in the first kernel of the graphs that can have the mistake."""
    planted, outcome = ASSEMBLED[name], Outcome()
    for kernel, source in itertools.chain.from_iterable(map(triton_sources, graphs)):
        if kernel.startswith(planted.prefix) and planted.right in source:
            changed = source.replace(planted.right, planted.wrong) if planted.right else source
            outcome.add([Assembler(planted.card).assemble_source(kernel, changed)])
            return outcome
    raise AssertionError(f"no kernel {planted.prefix}… has {planted.right!r} in its source")
