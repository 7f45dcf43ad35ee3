"""Translate between our names and transformers' names for Qwen3.

A Pion without softcap is a Qwen3 ("Qwen3 technical report", Qwen Team 2025).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pion.config import ModelConfig
from pion.errors import BadInput

State = dict[str, Tensor]

# Our names and theirs. A block's parts have the prefix "blocks.{i}." and "model.layers.{i}.".
_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "feedforward_norm.weight": "post_attention_layernorm.weight",
    "feedforward.gate_proj.weight": "mlp.gate_proj.weight",
    "feedforward.up_proj.weight": "mlp.up_proj.weight",
    "feedforward.down_proj.weight": "mlp.down_proj.weight",
}
_VOCABULARY_ROWS = ("embed.weight", "lm_head.weight")


def to_qwen3(
    config: ModelConfig, state: State, vocab_size: int | None = None
) -> tuple[dict[str, Any], State]:
    """Return our config and state dict as transformers' Qwen3 config fields and state dict.

    `vocab_size` keeps only that many embedding rows, for the ids that the tokenizer can produce.
    Raises BadInput if stock Qwen3 can't compute the model, or `vocab_size` is too large.
    """
    if config.softcap is not None:
        raise BadInput(
            f"a model with softcap {config.softcap:g} can't be exported as stock Qwen3, because "
            f"Qwen3 has no softcap; to publish the model, train it without softcap"
        )
    rows = config.vocab_size if vocab_size is None else vocab_size
    if rows > config.vocab_size:
        raise BadInput(f"the model has {config.vocab_size} embedding rows, not {rows}")
    names = _names(config)
    hf_state = {
        names[name]: tensor[:rows] if name in _VOCABULARY_ROWS else tensor
        for name, tensor in state.items()
    }
    hf_config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": rows,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
    }
    return hf_config, hf_state


def from_qwen3(hf_config: dict[str, Any], hf_state: State) -> tuple[ModelConfig, State]:
    """Return transformers' config fields and state dict of any Qwen3 model as ours.

    Raises BadInput for settings that our decoder does not support, and for a missing setting or an
    unexpected tensor.
    """
    rope = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    for what, value, expected in (
        ("model_type", hf_config.get("model_type"), "qwen3"),
        ("hidden_act", hf_config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", hf_config.get("attention_bias", False), False),
        ("use_sliding_window", hf_config.get("use_sliding_window", False), False),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
    ):
        if value != expected:
            raise BadInput(f"config.json: {what} is {value!r}; only {expected!r} is supported")
    try:
        config = ModelConfig.from_dict(
            {
                "d_model": hf_config["hidden_size"],
                "n_layers": hf_config["num_hidden_layers"],
                "n_heads": hf_config["num_attention_heads"],
                "n_kv_heads": hf_config["num_key_value_heads"],
                "d_ff": hf_config["intermediate_size"],
                "vocab_size": hf_config["vocab_size"],
                "seq_len": hf_config["max_position_embeddings"],
                "head_dim": hf_config.get("head_dim", 128),
                "rope_theta": rope.get("rope_theta") or hf_config.get("rope_theta", 10_000.0),
                "norm_eps": hf_config.get("rms_norm_eps", 1e-6),
                "tie_embeddings": hf_config.get("tie_word_embeddings", False),
                "init_std": hf_config.get("initializer_range", 0.02),
            }
        )
    except KeyError as missing:
        raise BadInput(f"config.json has no {missing}") from None
    ours = {theirs: name for name, theirs in _names(config).items()}
    if config.tie_embeddings:
        # Some programs also save the tied head.
        hf_state = {name: tensor for name, tensor in hf_state.items() if name != "lm_head.weight"}
    unknown = sorted(hf_state.keys() - ours.keys())
    if unknown:
        raise BadInput(
            f"unexpected tensor {unknown[0]}: a Qwen3 of this config has no parameter with that "
            "name"
        )
    return config, {ours[name]: tensor for name, tensor in hf_state.items()}


def _names(config: ModelConfig) -> dict[str, str]:
    """Return transformers' name of every tensor in the model, by our name."""
    names = {
        name: theirs
        for name, theirs in _NAMES.items()
        if not (config.tie_embeddings and name == "lm_head.weight")
    }
    for layer in range(config.n_layers):
        for name, theirs in _BLOCK_NAMES.items():
            names[f"blocks.{layer}.{name}"] = f"model.layers.{layer}.{theirs}"
    return names
