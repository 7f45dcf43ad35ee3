"""The models of the bench: small ones to check each family, and presets to measure."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pion.config.family import Preset
from pion.config.model_config import ModelConfig
from pion.config.presets import FAMILIES, PRESETS
from pion.data.stream import Batch
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.smaller_plan import StepDown
from pion.train.trainer import Trainer

# A step of one micro-batch has this many tokens, or one row if a row is longer. This is the worst
# case: the update takes the largest share of it.
STEP_TOKENS = 32_768
# In a job, so many documents are joined in each row.
DOCUMENTS = 4
# Rows are not longer than this, although Daisy-Wees could read longer rows.
LONGEST_ROW = 2048


@dataclass(frozen=True)
class Bench:
    """Where the bench runs, and whether its models are tiny."""

    device: torch.device
    tiny: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"


def check_model(family: str, tiny: bool, **changes: Any) -> ModelConfig:
    """Return a small model with the parts of a family. Its rows are longer than its windows."""
    shape: Preset = {"n_layers": 4, "vocab_size": 2048, "seq_len": 512}
    shape |= {"d_model": 128, "n_heads": 4, "d_ff": 352}
    if tiny:
        shape = {"n_layers": 2, "vocab_size": 128, "seq_len": 48}
        shape |= {"d_model": 32, "n_heads": 2, "d_ff": 48}
    shape["n_kv_heads"] = shape["n_heads"] // 2
    of = FAMILIES[family]
    return ModelConfig.preset(of.small, **shape | of.parts(tiny, shape), **changes)


def scrambled(config: ModelConfig) -> Decoder:
    """Return a model on the CPU whose weights, gains and scalars all differ from initial values.

    The weights are the same in each call. Initial weights would hide mistakes: some are 0 or 1.
    """
    torch.manual_seed(0)
    model = Decoder(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.03)
    return model.eval()


def twin(model: Decoder, device: torch.device) -> Decoder:
    """Return a copy of the model on a device."""
    return copy.deepcopy(model).to(device)


def measured_presets(tiny: bool) -> dict[str, ModelConfig]:
    """Return the models to measure, the most useful first."""
    if tiny:
        return {f"tiny-{family}": check_model(family, tiny) for family in FAMILIES}
    first = (
        *(family.measured for family in FAMILIES.values()),
        *("pion-large", "pion-base", "pion-xl"),
    )
    return {name: ModelConfig.preset(name) for name in (*first, *PRESETS)}


def row_tokens(config: ModelConfig) -> int:
    """Return the tokens in a row of a measured step."""
    return min(config.seq_len, LONGEST_ROW)


class Rows:
    """A stream of rows for a Trainer: row i counts up from a random id in random strides.

    A model learns this within a few steps, so wrong gradients show in the losses. Rows have so many
    `documents` of one length, or are not masked.
    """

    def __init__(self, vocab_size: int, seq_len: int, documents: int | None = None) -> None:
        self._vocab_size, self._seq_len, self._documents = vocab_size, seq_len, documents

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows with these numbers."""
        rows = torch.stack([self._row(i) for i in indices])
        positions = documents = None
        if self._documents is not None:
            length = -(-self._seq_len // self._documents)
            at = torch.arange(self._seq_len).repeat(len(rows), 1)
            positions, documents = at % length, at // length
        tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        return Batch(tokens, targets, positions, documents)

    def _row(self, i: int) -> Tensor:
        randomness = torch.Generator().manual_seed(i)
        start = torch.randint(self._vocab_size, (1,), generator=randomness)
        stride = torch.randint(1, 4, (1,), generator=randomness)
        return (start + stride * torch.arange(self._seq_len + 1)) % min(self._vocab_size, 512)


class PlanChanged(Exception):
    """A step could not be computed as it should be measured."""


def refuse_change(change: StepDown) -> None:
    """Raise PlanChanged. As a trainer's `on_step_down`, this keeps a row from measuring less."""
    raise PlanChanged(f"{change.why}, and the trainer would continue with {change.changes}")


def counting_trainer(
    model: Decoder, settings: TrainSettings, plan: ComputePlan, documents: int | None = None
) -> Trainer:
    """Return a trainer of `Rows`, whose steps are computed as `plan` says or not at all."""
    rows: Any = Rows(model.config.vocab_size, row_tokens(model.config), documents)
    trainer = Trainer(model, rows, settings, plan)
    trainer.on_step_down = refuse_change
    return trainer


def train(trainer: Trainer, steps: int) -> None:
    """Train so many steps."""
    for _ in range(steps):
        trainer.train_step()


@contextlib.contextmanager
def temporarily(change: Callable[[Any], object], value: object, before: object) -> Iterator[None]:
    """Call `change(value)` now, and `change(before)` at the end of the `with` block."""
    change(value)
    try:
        yield
    finally:
        change(before)


def exact_float32() -> contextlib.AbstractContextManager[None]:
    """Multiply fp32 matrices in fp32, not in TF32, inside the `with` block."""
    before = torch.get_float32_matmul_precision()
    return temporarily(torch.set_float32_matmul_precision, "highest", before)
