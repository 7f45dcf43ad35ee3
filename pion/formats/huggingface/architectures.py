"""Which architecture of transformers computes a decoder: the one that it came as, or else the first
that fits.

`BundledCode` fits every decoder, because the export brings its code along. So only a model that
came as one of the architectures after it is exported as one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architecture import HEAD, Architecture, State
from pion.formats.huggingface.bundled_code import BundledCode
from pion.formats.huggingface.qwen3_moe import QWEN3_MOE
from pion.formats.huggingface.stock_rows import FIRST, LATER, QWEN3_ROW
from pion.formats.model_tensors import Rows, SavedTensors
from pion.later_fields import closest, shown
from pion.model.parameters import require_possible, vocabulary_rows
from pion.model.saved_weights import Tensors, placeholders, without_values

ARCHITECTURES: tuple[Architecture, ...] = (QWEN3_ROW, QWEN3_MOE, *FIRST, BundledCode(), *LATER)
# Models of text and images whose text part is one of these.
_WRAPPERS = ("gemma3", "mistral3")
_TYPES = {architecture.model_type: architecture for architecture in ARCHITECTURES}


def architecture_of(config: ModelConfig, model_type: str | None = None) -> Architecture:
    """Return the architecture `model_type`. Unset, it is the one that the model came as, or else
    the first one, that computes the model exactly.

    Raises BadInput if there is no such architecture, or if it can't compute the model.
    """
    if model_type is None:
        first = [_TYPES[name] for name in config.came_from if name in _TYPES]
        return next(a for a in (*first, *ARCHITECTURES) if a.misfit(config) is None)
    if model_type not in _TYPES:
        raise BadInput(
            f"no architecture {model_type!r}{closest(model_type, _TYPES)}; the architectures are "
            f"{', '.join(_TYPES)}"
        )
    reason = _TYPES[model_type].misfit(config)
    if reason is not None:
        raise BadInput(f"the model can't be exported as {model_type}: {reason}")
    return _TYPES[model_type]


def architecture_named(hf_config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a config.json that `config_from_transformers` has read."""
    return _TYPES[_text_fields(hf_config)["model_type"]]


def is_wrapper(hf_config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a model of text and images, whose text part is read."""
    return hf_config.get("model_type") in _WRAPPERS and isinstance(
        hf_config.get("text_config"), Mapping
    )


def _text_fields(hf_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the text part, which has its embeddings tied as the whole says."""
    if not is_wrapper(hf_config):
        return hf_config
    tied = hf_config.get("tie_word_embeddings", True)
    return {**hf_config["text_config"], "tie_word_embeddings": tied}


def _text_tensors(saved: SavedTensors) -> SavedTensors:
    """Return the tensors of the text part by their names in its class: both spellings are read."""
    sources = {}
    for name, (shape, _) in saved.layout().items():
        inner = re.fullmatch(r"(?:model\.language_model\.|language_model\.model\.)(.+)", name)
        head = name.removeprefix("language_model.")
        if inner is not None or head == HEAD:
            sources[head if inner is None else f"model.{inner[1]}"] = shape, [Rows(name)]
    return saved.joined(sources)


def nearest_misfit(config: ModelConfig) -> str | None:
    """Return why the architecture that the model came as can't compute the model. Of another
    model, return this of the stock architecture that lacks the least."""
    of_origin = [_TYPES[name] for name in config.came_from if name in _TYPES]
    stock = of_origin or [QWEN3_ROW, QWEN3_MOE, *FIRST]
    return min(stock, key=lambda architecture: len(architecture.lacks(config))).misfit(config)


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
    cut = vocabulary_rows(without_values(config))
    state = {name: tensor[:rows] if name in cut else tensor for name, tensor in state.items()}
    return replace(config, vocab_size=rows, head_multiple=1), state


def from_transformers(hf_config: Mapping[str, Any], hf_state: State) -> tuple[ModelConfig, State]:
    """Return the config fields and the state dict of an architecture as ours.

    Raises BadInput like `config_from_transformers`, for settings that need more than the tensors
    have, and for an unexpected tensor.
    """
    config = config_from_transformers(hf_config)
    require_possible(config, hf_state)
    return config, architecture_named(hf_config).rename(config, hf_state)


def saved_from_transformers(
    hf_config: Mapping[str, Any], saved: SavedTensors
) -> tuple[ModelConfig, SavedTensors]:
    """Return what `from_transformers` does, of tensors that are read later. Raises as it does, and
    BadInput for a head that should be the embeddings and is not."""
    if is_wrapper(hf_config):
        saved = _text_tensors(saved)
    config, state = from_transformers(hf_config, placeholders(saved.layout()))
    sources = architecture_named(hf_config).sources(config, state)
    if config.tie_embeddings and HEAD in saved.layout():
        embed, tensors = sources["embed.weight"][0].name, Tensors(saved)
        if not torch.equal(tensors[embed], tensors[HEAD].to(tensors[embed].dtype)):
            raise BadInput(
                f"config.json: tie_word_embeddings is true, but {HEAD} is not {embed}, and "
                f"programs disagree on which is the head. To use {HEAD}, as transformers 5 does, "
                "set tie_word_embeddings to false. To use the embeddings, remove "
                f"{HEAD} from the weights"
            )
    return config, saved.joined({name: (t.shape, sources[name]) for name, t in state.items()})


def config_from_transformers(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of an architecture as our settings.

    Raises BadInput for another architecture, settings that our decoder does not support, and a
    missing setting.
    """
    fields = _text_fields(hf_config)
    wanted = fields.get("model_type")
    if not isinstance(wanted, str) or wanted not in _TYPES:
        raise BadInput(
            f"config.json: model_type is {shown(wanted)}{closest(wanted, _TYPES)}; Pion reads "
            f"{', '.join((*_TYPES, *_WRAPPERS))}"
        )
    quantized = hf_config.get("quantization_config", hf_config.get("quantization"))  # MLX's
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise BadInput(
            f"config.json: quantization_config: its weights are quantized ({shown(method)}), and "
            "Pion has float weights. Name the model that was quantized: its page says which it is. "
            "Of an adapter, write that name under base_model_name_or_path in adapter_config.json"
        )
    architecture = _TYPES[wanted]
    config = architecture.read(fields)
    if not architecture.stock or architecture_of(config) is architecture:
        return config
    wrapper = f"{hf_config['model_type']}/" if is_wrapper(hf_config) else ""
    return replace(config, came_as=wrapper + wanted)
