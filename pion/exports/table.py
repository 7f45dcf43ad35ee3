"""Which stock architecture computes a decoder: the first in the table that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.exports import qwen3, qwen3_moe

State = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, and how our models become its models and back.

    `misfit` returns the reason why the class can't compute a model, or None. `write` gets the
    number of embedding rows to keep.
    """

    name: str
    model_type: str
    misfit: Callable[[ModelConfig], str | None]
    write: Callable[[ModelConfig, State, int], tuple[dict[str, Any], State]]
    read: Callable[[Mapping[str, Any], State], tuple[ModelConfig, State]]


ARCHITECTURES = (
    Architecture(
        qwen3.ARCHITECTURE, qwen3.MODEL_TYPE, qwen3.misfit, qwen3.to_qwen3, qwen3.from_qwen3
    ),
    Architecture(
        qwen3_moe.ARCHITECTURE,
        qwen3_moe.MODEL_TYPE,
        qwen3_moe.misfit,
        qwen3_moe.to_qwen3_moe,
        qwen3_moe.from_qwen3_moe,
    ),
)


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the first architecture that computes the model exactly.

    Raises BadInput with every architecture's reason if none does.
    """
    reasons = []
    for architecture in ARCHITECTURES:
        reason = architecture.misfit(config)
        if reason is None:
            return architecture
        reasons.append(reason)
    raise BadInput(f"no stock architecture computes this model exactly: {'; '.join(reasons)}")


def to_stock(
    config: ModelConfig, state: State, vocab_size: int | None = None
) -> tuple[dict[str, Any], State]:
    """Return the model as the config fields and the state dict of a stock architecture.

    `vocab_size` keeps only that many embedding rows, for the ids that the tokenizer can produce.
    Raises BadInput if no architecture fits, or `vocab_size` is too large.
    """
    rows = config.vocab_size if vocab_size is None else vocab_size
    if rows > config.vocab_size:
        raise BadInput(f"the model has {config.vocab_size} embedding rows, not {rows}")
    return architecture_of(config).write(config, state, rows)


def from_stock(hf_config: Mapping[str, Any], hf_state: State) -> tuple[ModelConfig, State]:
    """Return the config fields and the state dict of a stock architecture as ours.

    Raises BadInput for another architecture, settings that our decoder does not support, a missing
    setting and an unexpected tensor.
    """
    wanted = hf_config.get("model_type")
    for architecture in ARCHITECTURES:
        if architecture.model_type == wanted:
            return architecture.read(hf_config, hf_state)
    known = " and ".join(repr(architecture.model_type) for architecture in ARCHITECTURES)
    raise BadInput(f"config.json: model_type is {wanted!r}; only {known} are supported")
