"""Compare a model's settings with its tensors, before anything is built from the settings.

The settings of a model from elsewhere can claim any size. A model that its own tensors can't fill
is refused here, at the cost of reading the tensors' names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pion.config import ModelConfig
from pion.errors import BadInput

# The most layers, and the most layers, shared experts and recipes of experts together. A module
# takes about a millisecond to build.
MOST_LAYERS, MOST_MODULES = 1024, 4096

REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Tensors of whole numbers, by the last part of their name: those of packed banks (bank.py).
WHOLE_NUMBERS = {"packed": torch.uint8, "numbers": torch.int64}

# The number of a layer, in our names and in those of transformers and the seeds.
_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


def require_possible(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise BadInput unless tensors with these names and sizes can be the model's weights.

    Afterwards, the cost of building the model is that of its tensors. Whether each tensor is there
    and has the right shape is for `Decoder.from_state`.
    """
    for name, tensor in tensors.items():
        whole = WHOLE_NUMBERS.get(name.rpartition(".")[2])
        if whole is not None and tensor.dtype != whole:
            raise BadInput(f"{name} is not an array of {whole}, but {tensor.dtype}")
        if whole is None and tensor.dtype not in REAL:
            raise BadInput(f"{name} is not an array of real numbers, but {tensor.dtype}")
    layers = {match[1] for name in tensors if (match := _LAYER.search(name))}
    if config.n_layers > len(layers):
        raise BadInput(
            f"n_layers is {config.n_layers:,}, but the weights have tensors of {len(layers):,} "
            "layers"
        )
    parts = 0
    if config.experts is not None:
        # Other experts of a layer are stacked in its tensors.
        parts = config.experts.shared if config.primitives is None else config.experts.n
    if config.n_layers > MOST_LAYERS or config.n_layers * (1 + parts) > MOST_MODULES:
        raise BadInput(
            f"n_layers is {config.n_layers:,}, with {parts:,} shared experts or recipes each: at "
            f"most {MOST_LAYERS:,} layers, and {MOST_MODULES:,} layers and such parts, are read"
        )
    elements = sum(tensor.numel() for tensor in tensors.values())
    for what, needed in _least_elements(config):
        if needed > elements:
            raise BadInput(
                f"the settings need {needed:,} numbers for {what}, but the weights have only "
                f"{elements:,} in total"
            )


def _least_elements(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Yield the sizes of the largest tensors of the model, by what they are."""
    key_width = config.n_kv_heads * config.head_dim
    yield "vocab_size × d_model", config.vocab_size * config.d_model
    yield "the rows of the head × d_model", config.head_rows * config.d_model
    yield "n_heads × head_dim × d_model", config.n_heads * config.head_dim * config.d_model
    yield "n_kv_heads × head_dim × d_model", key_width * config.d_model
    if config.positions == "learned":
        yield "seq_len × d_model", config.seq_len * config.d_model
    primitives = config.primitives
    if primitives is None:
        experts = 1 if config.experts is None else config.experts.n
        yield "experts × d_ff × d_model", experts * config.d_ff * config.d_model
    else:
        yield "primitives.n × n_layers", primitives.n * config.n_layers
        if primitives.stored is None:
            ranks = primitives.n * primitives.rank
            yield "primitives.n × rank × (d_model + d_ff)", ranks * (config.d_model + config.d_ff)
    if config.experts is not None and config.experts.shared:
        yield "experts.d_shared × d_model", config.experts.d_shared * config.d_model
    if config.values is not None:
        yield "vocab_size × n_kv_heads × head_dim", config.vocab_size * key_width
