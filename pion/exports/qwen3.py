"""A decoder without parts, as transformers' Qwen3 ("Qwen3 technical report", Qwen Team 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config import ModelConfig
from pion.exports import core
from pion.exports.core import State

ARCHITECTURE, MODEL_TYPE = "Qwen3ForCausalLM", "qwen3"
# What all Qwen3 models here have in common, with experts or without.
COMMON = {"hidden_act": "silu", "use_sliding_window": False}


def misfit(config: ModelConfig) -> str | None:
    """Return why stock Qwen3 can't compute the model; None if it can."""
    return core.lacks("Qwen3", config)


def to_qwen3(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict of Qwen3."""
    names = _names(config)
    hf_config = {**core.settings(config), **COMMON, "intermediate_size": config.d_ff}
    hf_config |= {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE]}
    return hf_config, {names[name]: tensor for name, tensor in state.items()}


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of any Qwen3 model as our settings.

    Raises BadInput for settings that our decoder does not support, and for a missing setting.
    """
    core.require(hf_config, COMMON)
    return core.read(hf_config, lambda: {"d_ff": hf_config["intermediate_size"]})


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors of a Qwen3 model by our names. Raises BadInput for an unexpected one."""
    return core.renamed(_names(config), core.without_tied_head(config, hf_state))


def _names(config: ModelConfig) -> dict[str, str]:
    names = core.names(config)
    for layer in range(config.n_layers):
        for name in ("gate_proj", "up_proj", "down_proj"):
            ours = f"blocks.{layer}.feedforward.{name}.weight"
            names[ours] = f"model.layers.{layer}.mlp.{name}.weight"
    return names
