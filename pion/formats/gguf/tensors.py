"""The tensors of an exported model as those of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from pion.config import ModelConfig
from pion.formats.gguf.architecture import INTERLEAVED
from pion.model.attention.rope import Frequencies, frequencies_of

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
    for name, shape in single.items():
        heads = _interleaved_heads(name, config) if architecture in INTERLEAVED else None
        yield Tensor(_gguf_name(name), shape, partial(_value, weights, name, heads))
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


def _interleaved_heads(name: str, config: ModelConfig) -> int | None:
    """Return how many heads the rows of a tensor have, if the rows are to be interleaved."""
    if ".q_proj." in name:
        return config.n_heads
    return config.n_kv_heads if ".k_proj." in name else None


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
