"""Train steps whose blocks are compiled, lower them, and assemble their kernels for a card."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import torch

from pion.config.model_config import ModelConfig
from pion.model.attention.rope import rotary_table
from pion.model.decoder import Decoder, _run_block
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.smaller_plan import StepDown
from pion.train.trainer import Trainer
from tests.cuda_rehearsal.kernels import Assembler, Kernel
from tests.cuda_rehearsal.lowering import Graph, lowering
from tests.cuda_rehearsal.pretended_card import insert_card
from tests.cuda_rehearsal.scenarios import Zeros
from tests.cuda_rehearsal.watch import Watch

Optimizer = Literal["adamw", "muon"]
Dtype = Literal["bfloat16", "float32"]
Kind = Literal["plain", "recompute", "documents", "softcap", "residual"]
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
# The last has a residual stream in the dtype of the computation.
KINDS: tuple[Kind, ...] = ("plain", "recompute", "documents", "softcap", "residual")

ROWS, SEQ_LEN = 2, 2048
# With few ids, the loss is quick.
_SMALL: dict[str, Any] = {"n_layers": 2, "vocab_size": 4096, "seq_len": SEQ_LEN}
_ONE_DAISY: dict[str, Any] = _SMALL | {
    "n_layers": 1,
    "wiring": {"attention_layers": None, "skips": []},
    "values": {"layers": [0]},
}
# Layers with and without attention, a value table and a skip, with long and short windows.
_DAISY: dict[str, Any] = _SMALL | {
    "n_layers": 4,
    "wiring": {"attention_layers": [0, 1, 3], "skips": [[3, 0]]},
    "values": {"layers": [0, 3]},
}
_PRIMITIVES: dict[str, Any] = _SMALL | {"primitives": {"bands": [[0, 1]]}}
_EXPERTS = {"n": 4, "top_k": 2, "shared": 1, "d_shared": 704}

# All have the same width, because kernels that are the same are assembled once.
SUITE: dict[str, ModelConfig] = {
    "dense": ModelConfig.preset("pion-micro", **_SMALL),
    "tachyon": ModelConfig.preset("tachyon-tiny", **_SMALL),
    "daisy": ModelConfig.preset("daisy-pico-tied", **_ONE_DAISY),
    "pilon": ModelConfig.preset("pilon-48m", **_PRIMITIVES),
    "lepton": ModelConfig.preset("lepton-small", **_SMALL),
}
# One for each family, and one that has the parts of several families. The widths of their heads,
# which decide what flex attention needs of a card, are 96, 128, 128, 64, 64 and 64.
SOAK: dict[str, ModelConfig] = {
    "dense": ModelConfig.preset("pion-xl", **_SMALL),
    "tachyon": ModelConfig.preset("tachyon-large", **_SMALL),
    "daisy": ModelConfig.preset("daisy-280m", **_DAISY),
    "mixed": ModelConfig.preset("daisy-pico", **_DAISY, experts=_EXPERTS),
    "pilon": ModelConfig.preset("pilon-360m", **_PRIMITIVES),
    "lepton": ModelConfig.preset("lepton-xxl", **_SMALL),
}
SOAK_CARDS = ("A100", "A40", "L40S", "H100")
SOFTCAP = 30.0


@dataclass(frozen=True)
class Case:
    """Training steps of a model, one with each optimizer."""

    config: ModelConfig
    card: str = "A40"
    dtype: Dtype = "bfloat16"
    kind: Kind = "plain"
    optimizers: tuple[Optimizer, ...] = ("adamw",)
    row_tokens: int = SEQ_LEN


@dataclass
class Outcome:
    """What became of a case.

    `compiles` has the reasons why each function was compiled again; see `Lowered.compiles`.
    `kernels` counts the assembled kernels, and `most_shared` is the most shared memory that a
    kernel needs. `slower` has the shared memory of the kernels that only fit without pipelining, by
    their names. `unfit` has the errors of the kernels that can't run, by their names. `waits` has
    the findings of watch.py. `error` is the exception that ended the case, if there was one.
    """

    graphs: int = 0
    compiles: dict[str, list[str]] = field(default_factory=dict)
    graph_breaks: list[str] = field(default_factory=list)
    kernels: int = 0
    most_shared: int = 0
    slower: dict[str, int] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    error: str | None = None

    def add(self, kernels: Iterable[Kernel]) -> None:
        """Count kernels that were assembled."""
        for kernel in kernels:
            self.kernels += 1
            self.most_shared = max(self.most_shared, kernel.shared)
            if kernel.fallback:
                self.slower[kernel.name] = kernel.shared
            if kernel.error is not None:
                self.unfit[f"{kernel.name} {kernel.configuration}"] = kernel.error

    def block_compiles(self) -> list[str]:
        """Return the reasons why the blocks' function was compiled again."""
        code = _run_block.__code__
        return self.compiles.get(f"{code.co_filename}:{code.co_name}", [])


def suite() -> dict[str, Case]:
    """Return the cases of every run of the tests, by name."""
    return {name: Case(config) for name, config in SUITE.items()}


def soak(family: str, card: str, dtype: Dtype) -> dict[str, Case]:
    """Return the cases of a family on a card in a dtype, by kind."""
    config = SOAK[family]
    capped = dataclasses.replace(config, softcap=SOFTCAP)
    return {
        kind: Case(capped if kind == "softcap" else config, card, dtype, kind, ("adamw", "muon"))
        for kind in KINDS
    }


def structures(config: ModelConfig) -> int:
    """Return how many different blocks a model has. Blocks that are equal share one compile."""
    return len(set(_structures(config)))


def _structures(config: ModelConfig) -> list[tuple[bool, ...]]:
    """Return of each layer whether it has attention, a skip and a value table."""
    wiring, values = config.wiring, config.values
    attending = wiring.attention_layers if wiring is not None else None
    skipping = dict(wiring.skips) if wiring is not None else {}
    tables = values.table_of() if values is not None else {}
    layers = range(config.n_layers)
    return [(attending is None or n in attending, n in skipping, n in tables) for n in layers]


def compile_case(watch: Watch, case: Case, trace_only: bool = False) -> tuple[Outcome, list[Graph]]:
    """Train the case's steps; return what was compiled, and its graphs.

    An exception ends only this case.
    """
    insert_card(case.card)
    rotary_table.cache_clear()
    outcome = Outcome()
    with lowering(trace_only) as lowered:
        try:
            for optimizer in case.optimizers:
                _train_step(watch, case, optimizer)
                outcome.waits += map(str, watch.findings)
        except Exception:
            outcome.error = traceback.format_exc()
        outcome.compiles, outcome.graph_breaks = lowered.compiles(), lowered.graph_breaks()
    outcome.graphs = len(lowered.graphs)
    return outcome, lowered.graphs


def run(watch: Watch, case: Case, assembler: Assembler) -> Outcome:
    """Train the case's steps, assemble the kernels, and return the outcome."""
    outcome, graphs = compile_case(watch, case)
    outcome.add(itertools.chain.from_iterable(map(assembler.assemble, graphs)))
    return outcome


def _train_step(watch: Watch, case: Case, optimizer: Optimizer) -> None:
    settings = TrainSettings(steps=10, global_batch=ROWS, lr=1e-3, optimizer=optimizer)
    recompute = case.kind == "recompute"
    residual: Dtype = case.dtype if case.kind == "residual" else "float32"
    plan = ComputePlan(
        "cuda", case.dtype, ROWS, recompute=recompute, compile=True, residual=residual
    )
    rows: Any = Zeros(case.row_tokens, documents=case.kind == "documents")
    with torch.device("cuda"):  # drawing weights on the host would take gigabytes and seconds
        model = Decoder(case.config)
    with (
        mock.patch.object(Decoder, "to", lambda self, device: self),  # it is already there
        contextlib.closing(Trainer(model, rows, settings, plan)) as trainer,
    ):
        trainer.on_step_down = refuse
        watch.start()
        trainer.train_step()


def refuse(change: StepDown) -> None:
    """Raise RuntimeError, where a trainer would compute a step in another way than its plan."""
    raise RuntimeError(change.why)
