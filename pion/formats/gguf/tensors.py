"""An exported model as llama.cpp has it: its architecture, its settings and its tensors.

llama.cpp (github.com/ggml-org/llama.cpp, src/models/) has transformers' stock architectures, but
not each of their options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.formats.huggingface.architectures import architecture_of, nearest_misfit
from pion.model.attention.rope import Frequencies, frequencies_of

# By the model_type of a config.json, what llama.cpp calls the architecture.
ARCHITECTURES = {
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "arcee": "arcee",
    "llama": "llama",
    "qwen2": "qwen2",
    "mistral": "llama",
    "ministral": "llama",
}
# llama.cpp rotates neighbouring dimensions of these, and reads factors of their frequencies.
INTERLEAVED = ("arcee", "llama")
# The most experts of a layer: LLAMA_MAX_EXPERTS in llama.cpp.
MOST_EXPERTS = 512
# The names in transformers and in GGUF, without ".weight" or ".bias". Those of a block have the
# prefixes "model.layers.{i}." and "blk.{i}.".
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
ROUTER = "ffn_gate_inp"


def require_expressible(config: ModelConfig, model_type: str | None = None) -> str:
    """Return the name of the llama.cpp architecture that computes the model exactly.

    `model_type` is for `architecture_of`. Raises BadInput with the reason if there is none.
    """
    architecture = architecture_of(config, model_type)
    name = ARCHITECTURES.get(architecture.model_type, "")
    own = nearest_misfit(config) or "it was exported with its own code (--as pion)"
    n_experts = 0 if config.experts is None else config.experts.n
    reasons = (
        (architecture.stock and not name, f"Pion does not write {architecture.name} as GGUF yet"),
        (
            n_experts > MOST_EXPERTS,
            f"llama.cpp has at most {MOST_EXPERTS} experts, and this model has {n_experts}",
        ),
        (
            name == "arcee" and (config.feedforward_bias or config.feedforward != "dense"),
            "arcee in llama.cpp has no biases in feed-forward layers, and this model needs them",
        ),
        (
            name == "arcee" and config.activation != "relu2",
            f"arcee in llama.cpp has the activation relu2, not {config.activation}",
        ),
        (
            name in ("qwen2", "qwen3", "qwen3moe") and config.rope_scaling is not None,
            f"{name} in llama.cpp has no scaled rotary positions (rope_scaling)",
        ),
        (
            bool(name) and (config.windows is not None or config.activation == "geglu"),
            f"{name} in llama.cpp sees all tokens before a token, and its activation is silu",
        ),
        (
            config.rope_scaling is not None and config.rope_scaling.kind in ("yarn", "longrope"),
            "Pion does not write rotary positions by YaRN or LongRoPE as GGUF yet",
        ),
        (not architecture.stock, f"llama.cpp has only stock architectures, and {own}"),
    )
    reason = next((reason for wrong, reason in reasons if wrong), None)
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


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file. `read` returns its values in fp32, of this shape."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def tensors(weights: Path, config: ModelConfig, architecture: str) -> Iterator[Tensor]:
    """Yield the tensors of the GGUF file of the exported model with these weights.

    `weights` is a model.safetensors, and `config` its settings. Values are read when they are
    needed, so that a large model is in memory tensor by tensor.
    """
    with safe_open(weights, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    single = {name: shape for name, shape in shapes.items() if ".experts." not in name}
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    for name, shape in single.items():
        count = heads.get(name.split(".")[-2]) if architecture in INTERLEAVED else None
        yield Tensor(_gguf_name(name), shape, partial(_value, weights, name, count))
    if config.experts is not None:
        yield from _experts(weights, config.n_layers, config.experts.n, shapes)
    if config.rope_scaling is not None:
        yield Tensor("rope_freqs.weight", (config.head_dim // 2,), partial(_slowing, config))


def _gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{BLOCK_NAMES[part]}.{kind}"


def _experts(
    weights: Path, n_layers: int, n_experts: int, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Tensor]:
    """Yield the experts' matrices, those of a layer as one tensor (n_experts, rows, columns)."""
    for layer in range(n_layers):
        for part, name in _EXPERTS.items():
            each = [f"model.layers.{layer}.mlp.experts.{e}.{part}.weight" for e in range(n_experts)]
            shape = (n_experts, *shapes[each[0]])
            yield Tensor(f"blk.{layer}.{name}.weight", shape, partial(_stacked, weights, each))


def _value(weights: Path, name: str, heads: int | None) -> np.ndarray:
    """Return a tensor in fp32, with the rows of `heads` heads interleaved."""
    with safe_open(weights, "pt") as file:
        value: torch.Tensor = file.get_tensor(name).float()
    return (value if heads is None else interleaved(value, heads)).numpy()


def _stacked(weights: Path, names: list[str]) -> np.ndarray:
    """Return the tensors of these names as one, in fp32."""
    with safe_open(weights, "pt") as file:
        return torch.stack([file.get_tensor(name).float() for name in names]).numpy()


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of queries or keys in llama.cpp's order.

    transformers rotates dimension i of a head with i + head_dim / 2, and llama.cpp 2i with 2i + 1.
    """
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()


def _slowing(config: ModelConfig) -> np.ndarray:
    """Return what each rotary frequency (head_dim / 2) is divided by, in fp32."""
    scaled = frequencies_of(config)
    plain = Frequencies(scaled.head_dim, scaled.theta)
    device = torch.device("cpu")
    return (plain.on(device) / scaled.on(device)).numpy()
