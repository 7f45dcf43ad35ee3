"""What our decoder shares with stock architectures of transformers: all but the feed-forward layer.

Each of these architectures is a Llama by its names and by the fields of its config: qwen3.py,
qwen3_moe.py and arcee.py say what they add.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.later_fields import shown

State = dict[str, Tensor]

# What these architectures can compute, and what is not part of a computation. An export has no rows
# that only a `head_multiple` needs. The settings of all else must be absent.
# fmt: off
FIELDS = frozenset((
    "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "seq_len", "head_dim",
    "rope_theta", "norm_eps", "tie_embeddings", "init", "init_std", "head_multiple", "family",
))
# fmt: on

# Our names and theirs, apart from the feed-forward layer. A block's parts have the prefix
# "blocks.{i}." and "model.layers.{i}.".
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
    "feedforward_norm.weight": "post_attention_layernorm.weight",
}
_QK_NORM_NAMES = {
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
}


def lacks(name: str, config: ModelConfig, fields: Collection[str] = FIELDS) -> str | None:
    """Return which settings of the model are not in `fields`, as a sentence; None if all are."""
    given = config.to_dict()
    if given["softcap"] is None:  # a record names a softcap even if there is none
        del given["softcap"]
    missing = [
        field if isinstance(value, dict) else f"{field} {value}"
        for field, value in given.items()
        if field not in fields
    ]
    return f"{name} does not support {', '.join(missing)}" if missing else None


def settings(config: ModelConfig) -> dict[str, Any]:
    """Return the config fields of all that is not the feed-forward layer."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def read(hf_config: Mapping[str, Any], feedforward: Callable[[], Mapping[str, Any]]) -> ModelConfig:
    """Return our settings.

    `feedforward` returns those of the feed-forward layer, and all others that an architecture reads
    in another way. Raises BadInput for settings that our decoder does not support, and for a
    missing setting.
    """
    rope = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise BadInput(f"config.json: rope_parameters is {shown(rope)}; it must be an object")
    require(hf_config, {"attention_bias": False})
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    require({"rope_type": rope_type}, {"rope_type": "default"})
    try:
        return ModelConfig.from_dict(
            {
                "d_model": hf_config["hidden_size"],
                "n_layers": hf_config["num_hidden_layers"],
                "n_heads": hf_config["num_attention_heads"],
                "n_kv_heads": hf_config["num_key_value_heads"],
                "vocab_size": hf_config["vocab_size"],
                "seq_len": hf_config["max_position_embeddings"],
                "head_dim": hf_config.get("head_dim", 128),
                "rope_theta": rope.get("rope_theta") or hf_config.get("rope_theta", 10_000.0),
                "norm_eps": hf_config.get("rms_norm_eps", 1e-6),
                "tie_embeddings": hf_config.get("tie_word_embeddings", False),
                "init_std": hf_config.get("initializer_range", 0.02),
                **feedforward(),
            }
        )
    except KeyError as missing:
        raise BadInput(f"config.json has no {missing}") from None


def require(hf_config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise BadInput for a field that has another value than this. It may be missing."""
    for name, value in expected.items():
        if hf_config.get(name, value) != value:
            text = shown(hf_config[name])
            raise BadInput(f"config.json: {name} is {text}; only {value!r} is supported")


def names(config: ModelConfig) -> dict[str, str]:
    """Return the name of every tensor that is not in a feed-forward layer, by our name."""
    found = {
        name: theirs
        for name, theirs in _NAMES.items()
        if not (config.tie_embeddings and name == "lm_head.weight")
    }
    in_block = _BLOCK_NAMES
    if config.heads is None or config.heads.qk_norm:
        in_block = _BLOCK_NAMES | _QK_NORM_NAMES
    for layer in range(config.n_layers):
        for name, theirs in in_block.items():
            found[f"blocks.{layer}.{name}"] = f"model.layers.{layer}.{theirs}"
    return found


def without_tied_head(config: ModelConfig, hf_state: State) -> State:
    """Return the state without a tied head, which some programs save too."""
    if not config.tie_embeddings:
        return hf_state
    return {name: tensor for name, tensor in hf_state.items() if name != "lm_head.weight"}


def renamed(ours_to_theirs: Mapping[str, str], hf_state: State) -> State:
    """Return the tensors by our names. Raises BadInput for a tensor that has none."""
    ours = {theirs: name for name, theirs in ours_to_theirs.items()}
    unknown = sorted(hf_state.keys() - ours.keys())
    if unknown:
        raise BadInput(
            f"unexpected tensor {unknown[0]}: a model of this config has no parameter with that "
            "name"
        )
    return {ours[name]: tensor for name, tensor in hf_state.items()}
