"""The parameters of a model and its arithmetic, as its parts state them.

Each part states these numbers next to its maths:

  * `macs_per_token()`: multiply-accumulates with the part's weights, for one token;
  * `macs_per_key()`: multiply-accumulates for one token and one key that the token sees.

Nothing else in Pion derives these numbers from a shape. No part states its memory: that is traced
(pion/train/memory_trace).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import torch

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.model.attention.masks import mean_keys
from pion.model.attention.reach import Reach
from pion.model.parameters import parameter_roles
from pion.model.saved_weights import without_values


@dataclass(frozen=True)
class ModelCost:
    """The costs of a whole model.

    Attributes:
        params: number of parameters by role.
        tensors: number of tensors of parameters.
        active_params: number of parameters that one token uses.
        macs_per_token: multiply-accumulates with weights for one token, the head included.
        apart_macs: those in training of parts that change nothing in the model, for one token.
        macs_per_key: by reach of attention, the multiply-accumulates of these layers for one token
            and one key.
    """

    params: Mapping[Role, int]
    tensors: int
    active_params: int
    macs_per_token: int
    macs_per_key: Mapping[Reach, int]
    apart_macs: int = 0

    @property
    def all_params(self) -> int:
        """The number of parameters."""
        return sum(self.params.values())


@lru_cache(maxsize=16)
def cost_of(config: ModelConfig) -> ModelCost:
    """Return the costs of the model that `config` describes, without allocating its weights."""
    model, shapes = _without_values(config), shapes_and_roles(config)
    params: dict[Role, int] = {
        role: sum(shape.numel() for shape, shape_role in shapes if shape_role == role)
        for role in get_args(Role)
    }
    macs_per_key: dict[Reach, int] = {}
    for block in model.layers:
        macs_per_key[block.reach] = macs_per_key.get(block.reach, 0) + block.macs_per_key()
    return ModelCost(
        params=params,
        tensors=len(shapes),
        active_params=model.num_params(active=True),
        macs_per_token=config.head_rows * config.d_model
        + sum(block.macs_per_token() for block in model.layers),
        macs_per_key=macs_per_key,
        apart_macs=sum(part.macs_per_token() for part in model.shared_parts()),
    )


@lru_cache(maxsize=16)
def shapes_and_roles(config: ModelConfig) -> tuple[tuple[torch.Size, Role], ...]:
    """Return the shape and the role of each parameter, in the model's order."""
    model = _without_values(config)
    roles = parameter_roles(model)
    return tuple((p.shape, roles[name]) for name, p in model.named_parameters())


_without_values = lru_cache(maxsize=16)(without_values)


@dataclass(frozen=True)
class TokenFlops:
    """The FLOPs of training on one token, without recomputation."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """The FLOPs of both passes. MFU counts these, because they are useful work."""
        return self.forward + self.backward

    @property
    def share_if_recomputed(self) -> float:
        """The share of the speed that is left if the forward pass is computed twice."""
        return self.total / (self.total + self.forward)


def token_flops(
    config: ModelConfig, seq_len: int, additions: int | None = None, *, only_apart: bool = False
) -> TokenFlops:
    """Return the FLOPs of training on a token in a row of `seq_len` tokens.

    A multiply-accumulate is 2 FLOPs forward, and 4 backward: the gradients of both factors. A token
    sees half of the row on average (Chowdhery et al. 2022, "PaLM", appendix B), or less through a
    window.

    `additions` is how many numbers LoRA's additions to a frozen model have (pion/config/lora.py);
    None: all weights are trained. A token multiplies each of these numbers once, and so does an
    entry of a part (a row's tokens share the arithmetic of these). A frozen weight has no gradient,
    so it takes 2 FLOPs backward. The first layer counts like the others, although only compiled
    code computes the gradient of its input.

    A part that changes nothing in the model learns from hidden states without gradients. If such
    parts are all that is trained (`only_apart`), the rest of the model has no backward pass.
    """
    cost = cost_of(config)
    attention = sum(
        macs * mean_keys(config, reach, seq_len) for reach, macs in cost.macs_per_key.items()
    )
    weights, apart = float(cost.macs_per_token), cost.apart_macs
    added = float(additions or 0)
    # Entries of parts pass all blocks, and have no logits.
    extra = (config.entries(seq_len) - seq_len) / seq_len
    weights += extra * (weights - config.head_rows * config.d_model)
    added += extra * added
    macs = weights + attention
    if only_apart:
        return TokenFlops(forward=2.0 * (macs + apart), backward=4.0 * apart)
    if additions is None:
        return TokenFlops(forward=2.0 * (macs + apart), backward=4.0 * (macs + apart))
    return TokenFlops(
        forward=2.0 * (macs + added),
        backward=2.0 * weights + 4.0 * (added + attention),
    )


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs of training all weights on a token, forward and backward."""
    return token_flops(config, seq_len).total
