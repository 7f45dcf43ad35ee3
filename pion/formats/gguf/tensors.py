"""An exported model as llama.cpp has it: its architecture, its settings and its tensors.

llama.cpp (github.com/ggml-org/llama.cpp, src/models/) has transformers' stock architectures, but
not each of their options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from safetensors import safe_open

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads, Scales
from pion.errors import BadInput
from pion.formats.huggingface.architectures import architecture_of, nearest_misfit
from pion.model.attention.rope import Frequencies, frequencies_of

# By the model_type of a config.json, what llama.cpp calls the architecture.
ARCHITECTURES = {
    **{name: name for name in ("qwen3", "arcee", "llama", "qwen2", "phi3", "smollm3")},
    "qwen3_moe": "qwen3moe",
    "mistral": "llama",
    "ministral": "llama",
}
# llama.cpp rotates neighbouring dimensions of these.
INTERLEAVED = ("arcee", "llama", "smollm3", "granite", "olmo")
# The tensors with what each frequency is divided by. phi3 has two, by the length of a text.
_FACTORS = dict.fromkeys(("arcee", "llama", "exaone4", "granite"), ("rope_freqs.weight",)) | {
    "phi3": ("rope_factors_long.weight", "rope_factors_short.weight")
}
# The kind of scaled rotary positions that was compared with llama.cpp.
_SCALINGS = dict.fromkeys(("arcee", "llama"), "llama3") | {"phi3": "longrope"}
# Activations in feed-forward layers, where they are not swiglu.
_ACTIVATIONS = dict.fromkeys(("gemma", "gemma2", "gemma3"), "geglu") | {
    "arcee": "relu2",
    "nemotron": "relu2",
    "starcoder2": "gelu_tanh",
}
# Every so many layers one sees everything, and all others have a window.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "olmo2": 4, "cohere2": 4}
# The most experts of a layer: LLAMA_MAX_EXPERTS in llama.cpp.
MOST_EXPERTS = 512
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
        *(
            (bool(name) and wrong, f"{name} in llama.cpp {why}")
            for wrong, why in _unlike(config, name)
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


def _unlike(config: ModelConfig, name: str) -> Iterator[tuple[bool, str]]:
    """Yield what llama.cpp fixes in an architecture, and whether the model has it otherwise."""
    heads, windows, scaling = config.heads or Heads(), config.windows, config.rope_scaling
    biases = heads.output_bias or config.feedforward_bias
    multiplied_out = name == "arcee" and config.feedforward != "dense"
    yield (
        biases or multiplied_out,
        "has no biases in feed-forward layers or after attention, and this model needs them",
    )
    activation = _ACTIVATIONS.get(name, "swiglu")
    yield (
        config.experts is None and config.activation != activation,
        f"has the activation {activation}, not {config.activation}",
    )
    every = _FULL_EVERY.get(name)
    full = None if every is None else tuple(range(every - 1, config.n_layers, every))
    yield every is None and windows is not None, "sees all tokens before a token"
    yield (
        windows is not None and windows.full_layers != full,
        f"has a layer that sees everything after each {(every or 1) - 1} with a window",
    )
    theta = 10_000.0 if name == "gemma3" else config.rope_theta
    yield (
        windows is not None and (windows.rope_theta or config.rope_theta) != theta,
        f"has the rotary base {theta:g} in layers with a window",
    )
    bare = tuple(range(3, config.n_layers, 4)) if name in ("smollm3", "cohere2") else ()
    rotated = f"has rotary positions in all layers but {list(bare)}"
    yield heads.unrotated_layers != bare, rotated
    wide = name in ("gemma2", "gemma3") and config.n_layers == (46 if name == "gemma2" else 62)
    scale = (config.d_model / config.n_heads if wide else config.head_dim) ** -0.5
    yield (
        name != "granite" and not math.isclose(heads.scale or scale, scale, rel_tol=1e-9),
        f"has scores times {scale:.6g}, not {heads.scale}",
    )
    capped = config.softcap is not None or config.logit_cap is not None
    yield name == "gemma3" and capped, "has no caps of scores or logits"
    yield name in ("gemma3", "cohere2") and windows is None, "has layers with a window"
    apart = name in ("olmo2", "stablelm", "nemotron")
    yield apart and config.tie_embeddings, "has a head apart from the embeddings"
    tied = name in ("gemma", "gemma2", "command-r", "cohere2")
    yield tied and not config.tie_embeddings, "has the embeddings as its head"
    narrow = config.n_heads * config.head_dim == config.d_model
    yield name == "nemotron" and not narrow, "has n_heads * head_dim equal to d_model"
    if scaling is not None:
        known = scaling.kind == _SCALINGS.get(name)
        yield (
            not known or bool(scaling.growth),
            "has no scaled rotary positions (rope_scaling) of this kind",
        )


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
        f"attention.layer_norm_{'rms_' if config.norm == 'rms' else ''}epsilon": config.norm_eps,
        "rope.dimension_count": (config.heads or Heads()).rotary_width(config.head_dim),
        "rope.freq_base": float(config.rope_theta),
    }
    scales, scaling = config.scales or Scales(), config.rope_scaling
    if name == "granite":
        fields["embedding_scale"] = scales.embeddings
        fields["residual_scale"] = scales.residual
        fields["attention.scale"] = (config.heads or Heads()).scale
        fields["logit_scale"] = 1 / scales.logits
    if name in ("command-r", "cohere2"):
        fields["logit_scale"] = scales.logits
    if name == "gemma2" or config.windows is not None:
        tokens = config.seq_len if config.windows is None else config.windows.tokens
        fields["attention.sliding_window"] = tokens
    if config.softcap is not None:
        fields["attn_logit_softcapping"] = config.softcap
    if config.logit_cap is not None:
        fields["final_logit_softcapping"] = config.logit_cap
    if name == "stablelm":
        fields["use_parallel_residual"] = config.parallel != "no"
    if scaling is not None and name not in _FACTORS:
        fields |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling is not None and name in _FACTORS:
        fields["rope.scaling.attn_factor"] = float(frequencies_of(config).turn(torch.zeros(()))[0])
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
    pairs = (config.heads or Heads()).rotary_pairs  # the rows have llama.cpp's order
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.n_layers)
    for name, shape in single.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None  # test_convert_engine.py writes each architecture
        interleave = architecture in INTERLEAVED and not pairs
        count = heads.get(name.split(".")[-2]) if interleave else None
        more = float(config.norm_offset and name.endswith("norm.weight"))
        yield Tensor(theirs, shape, partial(_value, weights, name, count, more))
    if config.experts is not None:
        yield from _experts(weights, config.n_layers, config.experts.n, shapes)
    if config.rope_scaling is not None:
        width = (config.heads or Heads()).rotary_width(config.head_dim)
        for name in _FACTORS.get(architecture, ()):
            yield Tensor(name, (width // 2,), partial(_slowing, config))


def _experts(
    weights: Path, n_layers: int, n_experts: int, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Tensor]:
    """Yield the experts' matrices, those of a layer as one tensor (n_experts, rows, columns)."""
    for layer in range(n_layers):
        for part, name in _EXPERTS.items():
            each = [f"model.layers.{layer}.mlp.experts.{e}.{part}.weight" for e in range(n_experts)]
            shape = (n_experts, *shapes[each[0]])
            yield Tensor(f"blk.{layer}.{name}.weight", shape, partial(_stacked, weights, each))


def _value(weights: Path, name: str, heads: int | None, more: float) -> np.ndarray:
    """Return a tensor plus `more` in fp32, with the rows of `heads` heads interleaved."""
    with safe_open(weights, "pt") as file:
        value: torch.Tensor = file.get_tensor(name).float() + more
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
