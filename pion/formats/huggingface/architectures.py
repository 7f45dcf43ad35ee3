"""Which architecture of transformers computes a decoder: the first in the table that fits.

The last one fits every decoder, because the export brings its code along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface import arcee, bundled_code, llama, qwen2, qwen3, qwen3_moe
from pion.formats.huggingface.core import State
from pion.later_fields import closest, shown
from pion.model.decoder import Decoder
from pion.model.parameters import require_possible, vocabulary_rows


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers, and how our models become its models and back.

    `misfit` returns the reason why the class can't compute a model, or None. `write` returns the
    config fields and the state dict. `read` returns our settings for config fields, and `rename`
    the tensors by our names. A stock class is part of transformers; the export of any other class
    has modelling files.
    """

    name: str
    model_type: str
    misfit: Callable[[ModelConfig], str | None]
    write: Callable[[ModelConfig, State], tuple[dict[str, Any], State]]
    read: Callable[[Mapping[str, Any]], ModelConfig]
    rename: Callable[[ModelConfig, State], State]
    stock: bool = True


ARCHITECTURES = (
    Architecture(
        qwen3.ARCHITECTURE,
        qwen3.MODEL_TYPE,
        qwen3.misfit,
        qwen3.to_qwen3,
        qwen3.read_config,
        qwen3.rename,
    ),
    Architecture(
        qwen3_moe.ARCHITECTURE,
        qwen3_moe.MODEL_TYPE,
        qwen3_moe.misfit,
        qwen3_moe.to_qwen3_moe,
        qwen3_moe.read_config,
        qwen3_moe.rename,
    ),
    Architecture(
        arcee.ARCHITECTURE,
        arcee.MODEL_TYPE,
        arcee.misfit,
        arcee.to_arcee,
        arcee.read_config,
        arcee.rename,
    ),
    Architecture(
        llama.ARCHITECTURE,
        llama.MODEL_TYPE,
        llama.misfit,
        llama.to_llama,
        llama.read_config,
        llama.rename,
    ),
    Architecture(
        qwen2.ARCHITECTURE,
        qwen2.MODEL_TYPE,
        qwen2.misfit,
        qwen2.to_qwen2,
        qwen2.read_config,
        qwen2.rename,
    ),
    Architecture(
        bundled_code.ARCHITECTURE,
        bundled_code.MODEL_TYPE,
        bundled_code.misfit,
        bundled_code.to_pion,
        bundled_code.read_config,
        bundled_code.rename,
        stock=False,
    ),
)
_TYPES = {architecture.model_type: architecture for architecture in ARCHITECTURES}


def architecture_of(config: ModelConfig, model_type: str | None = None) -> Architecture:
    """Return the architecture `model_type`, or else the first one that computes the model exactly.

    Raises BadInput if there is no such architecture, or if it can't compute the model.
    """
    if model_type is None:
        return next(found for found in ARCHITECTURES if found.misfit(config) is None)
    if model_type not in _TYPES:
        known = ", ".join(_TYPES)
        near = closest(model_type, _TYPES)
        raise BadInput(f"no architecture {model_type!r}{near}; the architectures are {known}")
    reason = _TYPES[model_type].misfit(config)
    if reason is not None:
        raise BadInput(f"the model can't be exported as {model_type}: {reason}")
    return _TYPES[model_type]


def architecture_named(model_type: str) -> Architecture:
    """Return the architecture of a config.json that `config_from_transformers` has read."""
    return _TYPES[model_type]


def misfits(config: ModelConfig) -> list[str]:
    """Return why each architecture that can't compute the model can't."""
    reasons = [architecture.misfit(config) for architecture in ARCHITECTURES]
    return [reason for reason in reasons if reason is not None]


def to_transformers(
    config: ModelConfig,
    state: State,
    vocab_size: int | None = None,
    model_type: str | None = None,
) -> tuple[dict[str, Any], State]:
    """Return the model as the config fields and the state dict of an architecture.

    `vocab_size` keeps only that many of the rows that stand for token ids, for the ids that the
    tokenizer can produce. `model_type` is for `architecture_of`. Raises BadInput if the
    architecture doesn't fit, or `vocab_size` is too large.
    """
    architecture = architecture_of(config, model_type)
    rows = config.vocab_size if vocab_size is None else vocab_size
    return architecture.write(*_with_vocabulary(config, state, rows))


def _with_vocabulary(config: ModelConfig, state: State, rows: int) -> tuple[ModelConfig, State]:
    """Return the model with only the first `rows` token ids."""
    if rows > config.vocab_size:
        raise BadInput(f"the model has {config.vocab_size} embedding rows, not {rows}")
    with torch.device("meta"):
        cut = vocabulary_rows(Decoder(config))
    state = {name: tensor[:rows] if name in cut else tensor for name, tensor in state.items()}
    return replace(config, vocab_size=rows, head_multiple=1), state


def from_transformers(hf_config: Mapping[str, Any], hf_state: State) -> tuple[ModelConfig, State]:
    """Return the config fields and the state dict of an architecture as ours.

    Raises BadInput like `config_from_transformers`, for settings that need more than the tensors
    have, and for an unexpected tensor.
    """
    config = config_from_transformers(hf_config)
    require_possible(config, hf_state)
    return config, _TYPES[hf_config["model_type"]].rename(config, hf_state)


def config_from_transformers(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of an architecture as our settings.

    Raises BadInput for another architecture, settings that our decoder does not support, and a
    missing setting.
    """
    wanted = hf_config.get("model_type")
    if not isinstance(wanted, str) or wanted not in _TYPES:
        *most, last = map(repr, _TYPES)
        known = f"{', '.join(most)} and {last}"
        raise BadInput(f"config.json: model_type is {shown(wanted)}; only {known} are supported")
    return _TYPES[wanted].read(hf_config)
