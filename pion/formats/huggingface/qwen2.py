"""A decoder with biases on queries, keys and values, as transformers' Qwen2.

Qwen2 is from Qwen Team 2024, "Qwen2 technical report". Qwen2.5 has the same architecture.

transformers 5 reads a tokenizer.json next to a Qwen2 with Qwen's normalizer and Qwen's rule for
splitting words, whatever the file says (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in
tokenization_auto.py). So only an imported model, whose tokenizer is Qwen's, is exported as a Qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.formats.huggingface import core
from pion.formats.huggingface.core import State

ARCHITECTURE, MODEL_TYPE = "Qwen2ForCausalLM", "qwen2"
HEADS = Heads(qk_norm=False, qkv_bias=True)
DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32_768}
# Qwen2 has its biases whatever a field says, and no such field as a width of heads. transformers
# takes a width that is there, but other programs compute d_model / n_heads.
NOT_FIELDS = ("attention_bias", "head_dim")


def misfit(config: ModelConfig) -> str | None:
    """Return why stock Qwen2 can't compute the model; None if it can."""
    heads = config.heads or Heads()
    if heads.qk_norm:
        return "Qwen2 does not normalize queries and keys"
    if not heads.qkv_bias:
        return "Qwen2 needs biases of queries, keys and values"
    if config.head_dim * config.n_heads != config.d_model:
        return "Qwen2 needs a head_dim of d_model / n_heads"
    if not config.imported:
        return "transformers splits the text of each Qwen2 as Qwen's own tokenizer does"
    return core.lacks("Qwen2", config, core.FIELDS | ({"heads"} if heads == HEADS else set()))


def to_qwen2(config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
    """Return the config fields and the state dict of Qwen2."""
    names = core.swiglu_names(config)
    fields = core.settings(config)
    hf_config = {name: value for name, value in fields.items() if name not in NOT_FIELDS} | {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "use_sliding_window": False,
    }
    return hf_config, {names[name]: tensor for name, tensor in state.items()}


def read_config(hf_config: Mapping[str, Any]) -> ModelConfig:
    """Return the config fields of a Qwen2 model as our settings.

    Raises BadInput for settings that our decoder does not support, and for a missing setting.
    """
    hf_config = core.with_defaults(hf_config, DEFAULTS)
    core.require(hf_config, {"hidden_act": "silu"})
    return core.read(hf_config, lambda: {"d_ff": hf_config["intermediate_size"], "heads": HEADS})


def rename(config: ModelConfig, hf_state: State) -> State:
    """Return the tensors of a Qwen2 model by our names. Raises BadInput for an unexpected one."""
    return core.renamed(core.swiglu_names(config), core.without_tied_head(config, hf_state))
