"""Compile blocks for the pretended card, and print what each keeps for the backward pass.

Inductor lowers the blocks, and runs its graphs on fake tensors (lowering.py). What the graph of a
forward pass returns for the backward pass is what inductor's partitioner has chosen to keep.

environment.py starts this program: `python -m tests.cuda_rehearsal.compiled_blocks`, with the name
of a preset, or "suite".
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.model import decoder
from pion.model.attention.rope import rotary_table
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.train.hardware import torch_dtype
from tests.cuda_rehearsal.live_bytes import LiveBytes
from tests.cuda_rehearsal.lowering import lowering
from tests.cuda_rehearsal.memory_traces import all_tokens_choose_the_first_experts
from tests.cuda_rehearsal.pretended_card import insert_card, pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back


@dataclass(frozen=True)
class Compiled:
    """Compiled blocks, and all that decides what they keep."""

    preset: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    documents: bool = False
    card: str = "A40"
    residual: Literal["bfloat16", "float32"] = "float32"

    @property
    def config(self) -> ModelConfig:
        """The preset with one block; a Daisy-Wee with a second one, without attention."""
        config = ModelConfig.preset(self.preset)
        changes: dict[str, Any] = {"n_layers": 1, "seq_len": 2048}
        if config.wiring is not None:
            changes["n_layers"] = 2
            changes["wiring"] = {"attention_layers": [0], "skips": [[1, 0]]}
            changes["values"] = {"layers": [0], "tables": None}
        if config.primitives is not None:
            changes["primitives"] = {"bands": [[0]]}
        return ModelConfig.preset(self.preset, **changes)


def named(preset: str) -> list[Compiled]:
    """Return the ways in which the blocks of this preset are compiled; of "suite", a single one."""
    if preset == "suite":
        return [Compiled("pion-nano")]
    ways = [Compiled(preset), Compiled(preset, "float32"), Compiled(preset, documents=True)]
    ways.append(Compiled(preset, residual="bfloat16"))
    if ModelConfig.preset(preset).experts is not None:
        ways.append(Compiled(preset, card="H100"))
    return ways


def kept(live: LiveBytes, how: Compiled) -> list[float]:
    """Return the bytes of a token that each block keeps, with its result in place of its input."""
    few, many = (_live_after_blocks(live, how, rows) for rows in (1, 2))
    more = [after - before for before, after in zip(few, many, strict=True)]
    entries = how.config.entries(how.config.seq_len)  # slots are computed like tokens
    return [(after - before) / entries for before, after in pairwise(more)]


def _live_after_blocks(live: LiveBytes, how: Compiled, rows: int) -> list[int]:
    """Return the live bytes before the first block and after each block."""
    insert_card(how.card)
    rotary_table.cache_clear()
    gc.collect()
    config, found = how.config, []
    with torch.device("cuda"):
        model = Decoder(config)
        tokens = torch.zeros(rows, config.seq_len, dtype=torch.int64)
    run = decoder._compiled_block()

    def watched(*arguments: Any) -> tuple[Tensor, Any]:
        if not found:
            found.append(live.live)
        result = run(*arguments)
        gc.collect()  # compiling leaves cycles
        found.append(live.live)
        return result

    autocast = torch.autocast("cuda", torch.bfloat16, enabled=how.dtype == "bfloat16")
    compiled = mock.patch.object(decoder, "_compiled_block", return_value=watched)
    with compiled, lowering(), all_tokens_choose_the_first_experts(), autocast:
        options = StepOptions(compiled=True, residual=torch_dtype(how.residual))
        documents = tokens if how.documents else None
        hidden = model.hidden(tokens, documents=documents, options=options)
    assert hidden.requires_grad  # as long as this is alive, so is what the blocks keep
    return found


def main() -> None:
    with pretended_card() as watch:
        live = LiveBytes(watch)
        hand_back([kept(live, how) for how in named(sys.argv[1])])


def read_kept(preset: str, output: str) -> dict[Compiled, list[float]]:
    """Return what the program printed for this preset."""
    return dict(zip(named(preset), handed_back(output), strict=True))


if __name__ == "__main__":
    main()
