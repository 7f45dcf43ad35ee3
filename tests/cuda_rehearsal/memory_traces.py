"""Trace the memory of training steps on a pretended card, and print the peaks.

environment.py starts this program: `python -m tests.cuda_rehearsal.memory_traces` with the name of
a list of traces (see `named`).
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.model.attention.rope import rotary_table
from pion.model.decoder import Decoder
from pion.model.feedforward import expert_products
from pion.model.lora_projections import add_lora
from pion.train.phases import Phase
from pion.train.preference import Preference
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from tests.cuda_rehearsal.fake_group import fake_group
from tests.cuda_rehearsal.live_bytes import LiveBytes
from tests.cuda_rehearsal.pretended_card import insert_card, pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back
from tests.cuda_rehearsal.scenarios import Zeros, flex_attention_without_compiler
from tests.cuda_rehearsal.watch import Watch

# So many lines of what is alive at a peak are kept, the largest first.
LINES = 8


@dataclass(frozen=True)
class Trace:
    """A training step, with everything that decides its memory. `changes` are of the preset."""

    preset: str
    micro_batch: int = 8
    optimizer: Literal["adamw", "muon"] = "adamw"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    recompute: bool = False
    documents: bool = False
    card: str = "A40"
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    lora: Lora | None = None
    only_apart: bool = False
    ranks: int = 1  # of which one is traced
    sequences: int = 0  # in a row of preferences; 0: no preferences

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.preset(self.preset, **self.changes)

    def __str__(self) -> str:
        words = [self.preset, f"{self.micro_batch} rows", self.optimizer, self.dtype, self.card]
        flags = ("recompute", "documents", "only_apart")
        words += [name for name in flags if getattr(self, name)]
        words += [str(self.lora)] if self.lora else []
        words += [f"{self.ranks} ranks"] if self.ranks > 1 else []
        words += [f"{self.sequences} answers"] if self.sequences else []
        return " ".join(words + [f"{name}={value}" for name, value in self.changes.items()])


@dataclass(frozen=True)
class Peak:
    """The most bytes at once in a trace, and the lines of code that made the largest of them."""

    size: int
    lines: dict[str, int]


_CUT = {"n_layers": 2}
_DAISY_CUT = _CUT | {
    "wiring": {"attention_layers": [0], "skips": [[1, 0]]},
    "values": {"layers": [0]},
}
_OLD_DAISY_CUT = _CUT | {
    "wiring": {"skips": [[1, 0]]},
    "values": {"layers": [0, 1], "tables": [0, 0]},
}
_PILON_CUT = _CUT | {"primitives": {"bands": [[0, 1]]}}
_BIASED = {
    "heads": {"qk_norm": False, "qkv_bias": True},
    "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 512},
}
# With few tokens and ids, the optimizer's step needs the most.
_FEW = _CUT | {"vocab_size": 512, "seq_len": 128}
_LONG = {"seq_len": 4096}

_DRAFT = _CUT | {"draft": {"steps": 3}}

# Each phase of a step is the largest in one of these.
SUITE = [
    Trace("pion-small", changes=_CUT),
    Trace("pion-xl", 1, optimizer="muon", changes=_FEW),
    Trace("pion-small", changes=_CUT, ranks=2),
    Trace("pion-small", documents=True, sequences=8, changes=_CUT),
]
# Each kernel and each way to compute is in one of these, or in the suite.
MORE = [
    Trace("pion-small", dtype="float32", optimizer="muon", recompute=True, changes=_CUT),
    Trace("tachyon-tiny", 32, recompute=True, changes=_CUT),
    Trace("tachyon-tiny", card="H100", documents=True, changes=_CUT),
    Trace("daisy-280m", 1, optimizer="muon", changes=_DAISY_CUT),
    Trace("pion-small", changes=_CUT | _BIASED, lora=Lora()),
    Trace("lepton-small", dtype="float32", optimizer="muon", documents=True, changes=_CUT),
    Trace("pion-small", changes=_DRAFT, only_apart=True),
    Trace("pilon-360m", 1, dtype="float32", optimizer="muon", changes=_PILON_CUT, ranks=2),
    Trace("pilon-48m", changes=_PILON_CUT),
    Trace("tachyon-tiny", dtype="float32", changes=_CUT, lora=Lora(8, targets=("q_proj",))),
    Trace("pion-small", documents=True, sequences=8, changes=_CUT),
    Trace("pion-small", 32, recompute=True, documents=True, changes=_CUT),
    Trace("daisy-pico", dtype="float32", recompute=True, documents=True, changes=_DAISY_CUT),
    Trace("pilon-360m", 1, dtype="float32", optimizer="muon", changes=_PILON_CUT),
    Trace("pilon-48m-dense", documents=True, changes=_CUT),
    Trace("pion-small", 32, recompute=True, documents=True, changes=_CUT, lora=Lora(rank=64)),
    Trace("lepton-small", 32, recompute=True, documents=True, changes=_CUT | _LONG),
    Trace("pion-small", changes=_DRAFT),
    Trace("pion-xl", 1, optimizer="muon", changes=_FEW, ranks=2),
    Trace("pion-small", 2, dtype="float32", documents=True, sequences=4, changes=_CUT),
    Trace("pion-small", changes=_CUT | {"softcap": 50.0, "tie_embeddings": False}),
    Trace("pion-xl", 1, optimizer="muon", dtype="float32", changes=_FEW),
    Trace("tachyon-tiny", dtype="float32", optimizer="muon", card="H100", changes=_CUT),
    Trace("daisy-350m", 1, changes=_OLD_DAISY_CUT),
    Trace("pion-small", changes=_CUT | _BIASED),
    Trace("pion-small", 1, changes=_CUT, lora=Lora(base_dtype="bfloat16")),
    Trace("lepton-small", changes=_CUT),
    Trace("lepton-small", changes=_CUT, lora=Lora()),
    Trace("pion-small", dtype="float32", documents=True, changes=_DRAFT, only_apart=True),
    Trace("lepton-small", 1, changes=_DRAFT, only_apart=True),
    Trace("lepton-small", dtype="float32", changes=_DRAFT),
    Trace("pion-small", 1, changes=_CUT, lora=Lora(), ranks=2),
    Trace("pion-small", changes=_DRAFT, only_apart=True, ranks=2),
    Trace("pion-small", documents=True, sequences=8, changes=_CUT, lora=Lora()),
    Trace("tachyon-tiny", 32, recompute=True, documents=True, sequences=8, changes=_CUT),
    Trace("daisy-280m", 1, documents=True, sequences=16, changes=_DAISY_CUT),
]
# What Gemma 3, Phi-3 and OLMo 2 have and no preset.
_WINDOW = {"tokens": 512, "block": 1}
_GEMMA3 = {
    "norms": "both",
    "norm_offset": True,
    "activation": "geglu",
    "scales": {"embeddings": 20.0},
    "windows": _WINDOW | {"full_layers": [1], "rope_theta": 1e4},
}
_PHI3 = {
    "heads": {"qk_norm": False},
    "windows": _WINDOW | {"full_layers": []},
    "rope_scaling": {
        "kind": "longrope",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "short_factors": [1.0] * 32,
        "long_factors": [2.0] * 32,
    },
}
_OLMO2 = {"norms": "after", "heads": {"whole_norm": True}}
MORE += [
    Trace("pion-small", documents=True, changes=_CUT | family)
    for family in (_GEMMA3, _PHI3, _OLMO2)
]
MICRO_BATCHES = (1, 8, 32)

_SMOLLM2 = {"d_model": 576, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64, "d_ff": 1536}
_OF_SMOLLM2 = _CUT | _SMOLLM2 | {"vocab_size": 49_152, "heads": {"qk_norm": False}}


def _both(micro_batch: int = 8, /, **how: Any) -> tuple[Trace, Trace]:
    """Return a step on conversations, and one on preferences of as many tokens: rows of `prefer`
    are twice as long, and half as many."""
    changes = how.pop("changes")
    usual = Trace("pion-small", micro_batch, documents=True, changes=changes, **how)
    longer = changes | {"seq_len": 4096}
    return usual, replace(usual, micro_batch=micro_batch // 2, sequences=32, changes=longer)


# By name; the suite has the first.
BOTH_STAGES = {
    "both stages": [_both(changes=_CUT), _both(changes=_OF_SMOLLM2, lora=Lora())],
    "more of both stages": [
        _both(dtype="float32", recompute=True, changes=_CUT),
        _both(changes=_OF_SMOLLM2),
        _both(2, dtype="float32", changes=_OF_SMOLLM2),
    ],
}


def named(name: str) -> list[Trace]:
    """Return the traces of this name: "suite", "more", one of BOTH_STAGES, or all of a preset with
    so many rows ("pion-xl 8").

    Experts are traced on a card with kernels for grouped products, too.
    """
    if name in ("suite", "more"):
        return SUITE if name == "suite" else MORE
    if name in BOTH_STAGES:
        return [trace for both in BOTH_STAGES[name] for trace in both]
    preset, rows = name.split()
    cards = ["A40"] if ModelConfig.preset(preset).experts is None else ["A40", "H100"]
    return [
        Trace(preset, int(rows), optimizer, dtype, recompute, card=card)
        for optimizer in ("adamw", "muon")
        for dtype in ("bfloat16", "float32")
        for recompute in (False, True)
        for card in cards
    ]


def main() -> None:
    peaks = []
    with fake_group(2), pretended_card() as watch:
        live = LiveBytes(watch, explain=True)
        for trace in named(sys.argv[1]):
            trace_peak(watch, live, trace)
            largest = sorted(live.at_peak.items(), key=lambda item: -item[1])
            peaks.append((live.peak, dict(largest[:LINES])))
    hand_back(peaks)


def read_peaks(name: str, output: str) -> dict[Trace, Peak]:
    """Return the peaks that the program printed for the traces of this name."""
    peaks = [Peak(*peak) for peak in handed_back(output)]
    return dict(zip(named(name), peaks, strict=True))


def trace_peak(watch: Watch, live: LiveBytes, trace: Trace) -> None:
    """Train a step on the pretended card, so that `live` has the peak."""
    insert_card(trace.card)
    rotary_table.cache_clear()
    watch.free_page_locked()
    gc.collect()
    if live.live:
        raise RuntimeError(f"{live.live} bytes of the last trace are still alive")
    config = trace.config
    with torch.device("cuda"):  # drawing weights on the host would take gigabytes and seconds
        model = Decoder(config)
        if trace.lora is not None:
            model = with_additions(model, trace.lora, trace.dtype)
    settings = TrainSettings(
        steps=10,
        global_batch=trace.micro_batch * trace.ranks,
        lr=1e-3,
        optimizer=trace.optimizer,
        phases=(Phase(rates={"draft": 1, "others": 0}),) if trace.only_apart else (),
        learning=Preference() if trace.sequences else None,
    )
    plan = ComputePlan(
        "cuda", trace.dtype, trace.micro_batch, recompute=trace.recompute, world_size=trace.ranks
    )
    stream = Zeros(config.seq_len, trace.documents, trace.sequences)
    with (
        mock.patch.object(Decoder, "to", lambda self, device: self),  # it is already there
        contextlib.closing(Trainer(model, stream, settings, plan)) as trainer,
        flex_attention_without_compiler(),
        all_tokens_choose_the_first_experts(),
    ):
        if trace.ranks == 1:  # several ranks have their gradients from the start
            for parameter in trainer.optimizer.params:  # as after an earlier micro-batch
                parameter.grad = torch.zeros_like(parameter)
        live.start()
        trainer.train_step()


def with_additions(model: Decoder, lora: Lora, dtype: str) -> Decoder:
    """Return the model with LoRA's additions, stored as `lora_projections.adapted` stores it."""
    if lora.base_dtype == dtype == "bfloat16":
        model = Decoder.from_state(model.config, model.state_dict(), torch.bfloat16)
    add_lora(model, lora, seed=0)
    return model


@contextlib.contextmanager
def all_tokens_choose_the_first_experts() -> Iterator[None]:
    """Let sliced products of experts see the largest slices, which a router can cause."""
    slices = expert_products._slices

    def of_full_slices(x: Tensor, weights: Tensor, order: Tensor, ends: Tensor) -> Any:
        tokens, top_k = weights.shape
        full = tokens * (torch.arange(len(ends)) + 1).clamp(max=top_k)
        return slices(x, weights, order, full)

    with mock.patch.object(expert_products, "_slices", of_full_slices):
        yield


if __name__ == "__main__":
    main()
