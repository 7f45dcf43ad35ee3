"""Which architecture of llama.cpp computes a model, and the settings that a GGUF file has of it.

llama.cpp (github.com/ggml-org/llama.cpp, src/models/) has transformers' stock architectures, but
not each of their options.
"""

from __future__ import annotations

from typing import Any

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface import arcee, llama, qwen2, qwen3, qwen3_moe
from pion.formats.huggingface.architectures import architecture_of

# By the model_type of a config.json, what llama.cpp calls the architecture.
NAMES = {
    qwen3.MODEL_TYPE: "qwen3",
    qwen3_moe.MODEL_TYPE: "qwen3moe",
    arcee.MODEL_TYPE: "arcee",
    llama.MODEL_TYPE: "llama",
    qwen2.MODEL_TYPE: "qwen2",
}
# llama.cpp rotates neighbouring dimensions of these, and reads factors of their frequencies.
INTERLEAVED = ("arcee", "llama")
# The most experts of a layer: LLAMA_MAX_EXPERTS in llama.cpp.
MOST_EXPERTS = 512


def require_expressible(config: ModelConfig, model_type: str | None = None) -> str:
    """Return the name of the llama.cpp architecture that computes the model exactly.

    `model_type` is for `architecture_of`. Raises BadInput with the reason if there is none.
    """
    architecture = architecture_of(config, model_type)
    reason = _own_code(config) if not architecture.stock else None
    name = NAMES.get(architecture.model_type, "")
    if config.rope_scaling is not None and name in ("qwen2", "qwen3", "qwen3moe"):
        reason = f"{name} in llama.cpp has no scaled rotary positions (rope_scaling)"
    if name == "arcee" and config.activation != "relu2":
        reason = f"arcee in llama.cpp has the activation relu2, not {config.activation}"
    if name == "arcee" and (config.feedforward_bias or config.primitives is not None):
        reason = (
            "arcee in llama.cpp has no biases in feed-forward layers, and this model needs them"
        )
    if config.experts is not None and config.experts.n > MOST_EXPERTS:
        reason = (
            f"llama.cpp has at most {MOST_EXPERTS} experts, and this model has {config.experts.n}"
        )
    if reason is not None:
        raise BadInput(
            f"GGUF can't express this model: {reason}. `pion chat` and `pion serve` run the model, "
            "and `pion export MODEL FOLDER` writes a folder for transformers"
        )
    return name


def settings(config: ModelConfig, name: str) -> dict[str, Any]:
    """Return the entries of a GGUF file that describe the model's shape.

    `config` is that of an exported model. `name` is from `require_expressible`.
    """
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.experts is not None:
        fields["expert_count"] = config.experts.n
        fields["expert_used_count"] = config.experts.top_k
        fields["expert_feed_forward_length"] = config.d_ff
    return {f"{name}.{field}": value for field, value in fields.items()}


def _own_code(config: ModelConfig) -> str:
    """Return what of the model no stock architecture computes."""
    nearest = qwen3 if config.experts is None else qwen3_moe
    reason = nearest.misfit(config) or "it was exported with its own code (--as pion)"
    return f"llama.cpp has only stock architectures, and {reason}"
