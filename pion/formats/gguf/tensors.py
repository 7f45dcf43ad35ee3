"""An exported model as llama.cpp has it: its architecture, its settings and its tensors.

llama.cpp (github.com/ggml-org/llama.cpp, src/models/) has transformers' stock architectures, but
not each of their options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class LlamaCpp:
    """An architecture of llama.cpp, and what it fixes that transformers' class leaves open.

    Attributes:
        name: of the architecture.
        rotates_neighbours: whether dimension 2i of a head rotates with 2i + 1. transformers rotates
            dimension i with i + head_dim / 2.
        biases: whether layers after attention and in the feed-forward part may have biases.
        activation: of the feed-forward part.
        scaling: the kind of scaled rotary positions that was compared with llama.cpp; None: none.
        divisors: the tensors with what each rotary frequency is divided by.
        bare_every: every so many layers one has no rotary positions; 0: all have them.
        tied: whether the embeddings may be the head.
    """

    name: str
    rotates_neighbours: bool = False
    biases: bool = False
    activation: str = "swiglu"
    scaling: str | None = None
    divisors: tuple[str, ...] = ()
    bare_every: int = 0
    tied: bool = True


_LLAMA = LlamaCpp(
    "llama",
    rotates_neighbours=True,
    biases=True,
    scaling="llama3",
    divisors=("rope_freqs.weight",),
)
# By the model_type of a config.json. tests/pion/formats/gguf/test_convert_engine.py compares each
# with llama.cpp.
ARCHITECTURES = {
    "qwen3": LlamaCpp("qwen3"),
    "qwen3_moe": LlamaCpp("qwen3moe"),
    "arcee": replace(_LLAMA, name="arcee", biases=False, activation="relu2"),
    "llama": _LLAMA,
    "qwen2": LlamaCpp("qwen2"),
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "phi3": LlamaCpp(
        "phi3",
        scaling="longrope",
        # For long texts, and for short ones.
        divisors=("rope_factors_long.weight", "rope_factors_short.weight"),
    ),
    "smollm3": LlamaCpp("smollm3", rotates_neighbours=True, bare_every=4),
    "olmo2": LlamaCpp("olmo2", tied=False),
    "granite": replace(_LLAMA, name="granite", biases=False),
}
# The most experts of a layer: LLAMA_MAX_EXPERTS in llama.cpp.
MOST_EXPERTS = 512
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
ROUTER = "ffn_gate_inp"


def require_expressible(config: ModelConfig, model_type: str | None = None) -> LlamaCpp:
    """Return the architecture of llama.cpp that computes the model exactly.

    `model_type` is for `architecture_of`. Raises BadInput with the reason if there is none.
    """
    architecture = architecture_of(config, model_type)
    row = ARCHITECTURES.get(architecture.model_type)
    misfit = nearest_misfit(config) or "it was exported with its own code (--as pion)"
    if not architecture.stock:
        reason = f"llama.cpp has only stock architectures, and {misfit}"
    elif row is None:
        reason = f"Pion does not write {architecture.name} as GGUF yet"
    elif (unlike := next((why for wrong, why in _unlike(config, row) if wrong), None)) is None:
        return row
    else:
        reason = f"{row.name} in llama.cpp {unlike}"
    raise BadInput(
        f"GGUF can't express this model: {reason}. `pion chat` and `pion serve` run the model, "
        "and `pion export MODEL FOLDER` writes a folder for transformers"
    )


def _unlike(config: ModelConfig, row: LlamaCpp) -> Iterator[tuple[bool, str]]:
    """Yield what llama.cpp fixes in an architecture, and whether the model has it otherwise."""
    heads, scaling = config.heads or Heads(), config.rope_scaling
    if config.experts is not None:
        many = f"has at most {MOST_EXPERTS} experts, and this model has {config.experts.n}"
        yield config.experts.n > MOST_EXPERTS, many
    # The primitives of a PILON are written out as matrices with biases.
    biased = (
        heads.output_bias
        or config.feedforward_bias
        or config.feedforward not in ("dense", "experts")
    )
    yield (
        biased and not row.biases,
        "has no biases in feed-forward layers or after attention, and this model needs them",
    )
    activation = f"has the activation {row.activation}, not {config.activation}"
    yield config.experts is None and config.activation != row.activation, activation
    yield config.windows is not None, "sees all tokens before a token"
    every = row.bare_every
    bare = tuple(range(every - 1, config.n_layers, every)) if every else ()
    unlike = f"has layers {list(bare)} without rotary positions, not {list(heads.unrotated_layers)}"
    yield heads.unrotated_layers != bare, unlike
    yield config.tie_embeddings and not row.tied, "has a head apart from the embeddings"
    yield (
        scaling is not None and (scaling.kind != row.scaling or bool(scaling.growth)),
        "has no scaled rotary positions (rope_scaling) of this kind",
    )


def settings(config: ModelConfig, architecture: LlamaCpp) -> dict[str, Any]:
    """Return the entries of a GGUF file that describe the model's shape.

    `config` is that of an exported model. `architecture` is from `require_expressible`.
    """
    heads, name = config.heads or Heads(), architecture.name
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
        "rope.dimension_count": heads.rotary_width(config.head_dim),
        "rope.freq_base": float(config.rope_theta),
    }
    if name == "granite":
        scales = config.scales or Scales()
        fields["embedding_scale"] = scales.embeddings
        fields["residual_scale"] = scales.residual
        fields["attention.scale"] = heads.scale or config.head_dim**-0.5
        fields["logit_scale"] = 1 / scales.logits
    if config.rope_scaling is not None:
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


def tensors(weights: Path, config: ModelConfig, architecture: LlamaCpp) -> Iterator[Tensor]:
    """Yield the tensors of the GGUF file of the exported model with these weights.

    `weights` is a model.safetensors, and `config` its settings. Values are read when they are
    needed, so that a large model is in memory tensor by tensor.
    """
    with safe_open(weights, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    single = {name: shape for name, shape in shapes.items() if ".experts." not in name}
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = get_tensor_name_map(kind, config.n_layers)
    for name, shape in single.items():
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert named is not None  # test_convert_engine.py writes each architecture
        count = heads.get(name.split(".")[-2]) if architecture.rotates_neighbours else None
        yield Tensor(named, shape, partial(_value, weights, name, count))
    if config.experts is not None:
        yield from _experts(weights, config.n_layers, config.experts.n, shapes)
    if config.rope_scaling is not None:
        width = (config.heads or Heads()).rotary_width(config.head_dim)
        for name in architecture.divisors:
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
