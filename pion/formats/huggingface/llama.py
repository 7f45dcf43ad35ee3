"""A decoder without norms and biases of queries and keys, as transformers' Llama.

Llama is from Touvron et al. 2023, "LLaMA: open and efficient foundation language models". SmolLM2
and Llama 3.2 are Llamas too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.formats.huggingface import core
from pion.formats.huggingface.core import State

ARCHITECTURE, MODEL_TYPE = "LlamaForCausalLM", "llama"
HEADS = Heads(qk_norm=False)
REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
DEFAULTS = {"max_position_embeddings": 2048}


def misfit(config: ModelConfig) -> str | None:
    """Return why stock Llama can't compute the model; None if it can."""
    heads = config.heads or Heads()
    if heads.qk_norm:
        return "Llama does not normalize queries and keys"
    if heads.qkv_bias:
        return "Llama has no biases of queries, keys and values without one of the output"
    if config.d_model % config.n_heads:
        return "Llama needs a d_model that is a multiple of n_heads"
    return core.lacks("Llama", config, core.FIELDS | ({"heads"} if heads == HEADS else set()))


def to_llama(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict of Llama."""
    names = core.swiglu_names(config)
    hf_config = core.settings(config) | {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "mlp_bias": False,
        "bos_token_id": None,  # else Llama's own, which our tokenizers do not have
    }
    return hf_config, {names[name]: tensor for name, tensor in state.items()}


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of a Llama model as our settings.

    Raises BadInput for settings that our decoder does not support, and for a missing setting.
    """
    hf_config = core.with_defaults(hf_config, DEFAULTS)
    core.require(hf_config, REQUIRED)
    return core.read(hf_config, lambda: {"d_ff": hf_config["intermediate_size"], "heads": HEADS})


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors of a Llama model by our names. Raises BadInput for an unexpected one."""
    return core.renamed(core.swiglu_names(config), core.without_tied_head(config, hf_state))
