"""A decoder without parts, as transformers' Qwen3 ("Qwen3 technical report", Qwen Team 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config.model_config import ModelConfig
from pion.formats.huggingface import core
from pion.formats.huggingface.core import State

ARCHITECTURE, MODEL_TYPE = "Qwen3ForCausalLM", "qwen3"
# What all Qwen3 models here have in common, with experts or without.
COMMON = {"hidden_act": "silu", "use_sliding_window": False}
REQUIRED = {**COMMON, "attention_bias": False}
DEFAULTS = {"head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32_768}


def misfit(config: ModelConfig) -> str | None:
    """Return why stock Qwen3 can't compute the model; None if it can."""
    return core.lacks("Qwen3", config)


def to_qwen3(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict of Qwen3."""
    names = core.swiglu_names(config)
    hf_config = {**core.settings(config), **COMMON, "intermediate_size": config.d_ff}
    hf_config |= {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    return hf_config, {names[name]: tensor for name, tensor in state.items()}


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of a Qwen3 model as our settings.

    Raises BadInput for settings that our decoder does not support, and for a missing setting.
    """
    hf_config = core.with_defaults(hf_config, DEFAULTS)
    core.require(hf_config, REQUIRED)
    return core.read(hf_config, lambda: {"d_ff": hf_config["intermediate_size"]})


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors of a Qwen3 model by our names. Raises BadInput for an unexpected one."""
    return core.renamed(core.swiglu_names(config), core.without_tied_head(config, hf_state))
