"""Compile blocks for the pretended card, and print what each keeps for the backward pass.

Inductor makes its graphs and its code as for a real card. Then each graph is run on fake tensors in
place of the code, because there is no card to load the code. What a graph returns for the backward
pass is what inductor's partitioner has chosen to keep.

environment.py starts this program: `python -m tests.cuda_rehearsal.compiled_blocks`, with the name
of a preset, or "suite".
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering
from torch.utils._python_dispatch import _pop_mode_temporarily
from triton.backends.compiler import GPUTarget

from pion.config import ModelConfig
from pion.model import decoder
from pion.model.decoder import Decoder
from pion.model.rope import rotary_table
from tests.cuda_rehearsal.live_bytes import LiveBytes
from tests.cuda_rehearsal.memory_traces import all_tokens_choose_the_first_experts
from tests.cuda_rehearsal.pretended_card import CARD, insert_card, pretended_card

# The program prints what the blocks keep as the line after this line.
MARKER = "--- kept by compiled blocks ---"


@dataclass(frozen=True)
class Compiled:
    """Compiled blocks, and all that decides what they keep."""

    preset: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    documents: bool = False
    card: str = "A40"

    @property
    def config(self) -> ModelConfig:
        """The preset with one block; a Daisy-Wee with a second one, without attention."""
        config = ModelConfig.preset(self.preset)
        changes: dict[str, Any] = {"n_layers": 1, "seq_len": 2048}
        if config.wiring is not None:
            changes["n_layers"] = 2
            changes["wiring"] = {"attention_layers": [0], "skips": [[1, 0]]}
            changes["values"] = {"layers": [0], "tables": None}
        return ModelConfig.preset(self.preset, **changes)


def named(preset: str) -> list[Compiled]:
    """Return the ways in which the blocks of this preset are compiled; of "suite", a single one."""
    if preset == "suite":
        return [Compiled("pion-nano")]
    ways = [Compiled(preset), Compiled(preset, "float32"), Compiled(preset, documents=True)]
    if ModelConfig.preset(preset).experts is not None:
        ways.append(Compiled(preset, card="H100"))
    return ways


def kept(watch: LiveBytes, how: Compiled) -> list[float]:
    """Return the bytes of a token that each block keeps, with its result in place of its input."""
    few, many = (_live_after_blocks(watch, how, rows) for rows in (1, 2))
    more = [after - before for before, after in zip(few, many, strict=True)]
    return [(after - before) / how.config.seq_len for before, after in pairwise(more)]


def _live_after_blocks(watch: LiveBytes, how: Compiled, rows: int) -> list[int]:
    """Return the live bytes before the first block and after each block."""
    insert_card(how.card)
    rotary_table.cache_clear()
    gc.collect()
    config, live = how.config, []
    with torch.device("cuda"):
        model = Decoder(config)
        tokens = torch.zeros(rows, config.seq_len, dtype=torch.int64)
    model.compiled = True
    run = torch.compile(decoder._run_block, dynamic=False, fullgraph=True)

    def watched(*arguments: Any) -> Any:
        if not live:
            live.append(watch.live)
        with _pop_mode_temporarily():  # torch does not compile while the watch is on
            result = run(*arguments)
        live.append(watch.live)
        return result

    autocast = torch.autocast("cuda", torch.bfloat16, enabled=how.dtype == "bfloat16")
    compiled = mock.patch.object(decoder, "_compiled_block", return_value=watched)
    with compiled, _compiler_without_card(watch), autocast:
        hidden = model.hidden(tokens, documents=tokens if how.documents else None)
    assert hidden.requires_grad  # as long as this is alive, so is what the blocks keep
    return live


@contextlib.contextmanager
def _compiler_without_card(watch: LiveBytes) -> Iterator[None]:
    """Let inductor make code, and run the graph of the code in its place."""

    def graph_in_place_of_code(graph: GraphLowering) -> Any:
        graph.codegen()
        run = torch.fx.Interpreter(graph.orig_gm).run

        def call(arguments: list[Tensor]) -> list[Any]:
            with torch.no_grad(), watch:
                return list(run(*arguments))

        return SimpleNamespace(
            call=call, __file__="none", recursively_apply_fns=None, partitions=None
        )

    triton.runtime.driver.set_active(_NoDriver())
    options = {
        "force_disable_caches": True,
        "compile_threads": 1,
        # These two would compute on the card.
        "joint_graph_constant_folding": False,
        "shape_padding": False,
    }
    answers = {
        "_lazy_init": lambda: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "_get_device_properties": lambda device=None: CARD,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer, create=True))
        capturing = mock.patch.object(torch.cuda.graphs, "_cuda_isCurrentStreamCapturing")
        stack.enter_context(capturing).return_value = False
        stack.enter_context(
            mock.patch.object(GraphLowering, "compile_to_module", graph_in_place_of_code)
        )
        stack.enter_context(inductor_config.patch(options))
        stack.enter_context(all_tokens_choose_the_first_experts())
        torch._dynamo.reset()
        yield


class _NoDriver:
    """Triton's driver, as far as inductor asks it."""

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


def main() -> None:
    with pretended_card(LiveBytes()) as watch:
        found = [kept(watch, how) for how in named(sys.argv[1])]
    print(f"\n{MARKER}\n{json.dumps(found)}", flush=True)


def read_kept(preset: str, output: str) -> dict[Compiled, list[float]]:
    """Return what the program printed for this preset."""
    *_, after = output.partition(f"{MARKER}\n")
    return dict(zip(named(preset), json.loads(after.splitlines()[0]), strict=True))


if __name__ == "__main__":
    main()
