"""What a model costs: parameters, arithmetic and memory, as its parts state them.

Each part states its costs next to its maths:

  * `macs_per_token()`: multiply-accumulates with the part's weights, for one token;
  * `macs_per_key()`: multiply-accumulates for one token and one key that the token sees;
  * `kept_bytes_per_token(at)`: what a forward pass keeps of a token for the backward pass. This
    depends on the kernels, so it depends on how the pass is computed (forward_pass.py).

Nothing else in Pion derives these numbers from a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import torch

from pion.config import ModelConfig
from pion.model.block import Block
from pion.model.decoder import Decoder
from pion.model.forward_pass import ForwardPass
from pion.model.masks import Reach, mean_keys
from pion.model.roles import Role, parameter_roles


@dataclass(frozen=True)
class ModelCost:
    """The costs of a whole model.

    Attributes:
        params: number of parameters by role.
        active_params: number of parameters that one token uses.
        macs_per_token: multiply-accumulates with weights for one token, the head included.
        macs_per_key: by reach of attention, the multiply-accumulates of these layers for one token
            and one key.
    """

    params: Mapping[Role, int]
    active_params: int
    macs_per_token: int
    macs_per_key: Mapping[Reach, int]

    @property
    def all_params(self) -> int:
        """The number of parameters."""
        return sum(self.params.values())


@lru_cache(maxsize=16)
def cost_of(config: ModelConfig) -> ModelCost:
    """Return the costs of the model that `config` describes, without allocating its weights."""
    model = _without_weights(config)
    parameters = dict(model.named_parameters())
    params: dict[Role, int] = dict.fromkeys(get_args(Role), 0)
    for name, role in parameter_roles(model).items():
        params[role] += parameters[name].numel()
    head = config.head_rows * config.d_model
    blocks = _blocks(model)
    macs_per_key: dict[Reach, int] = {}
    for block in blocks:
        macs_per_key[block.reach] = macs_per_key.get(block.reach, 0) + block.macs_per_key()
    return ModelCost(
        params=params,
        active_params=model.num_params(active=True),
        macs_per_token=head + sum(block.macs_per_token() for block in blocks),
        macs_per_key=macs_per_key,
    )


@lru_cache(maxsize=64)
def kept_bytes_per_token(config: ModelConfig, at: ForwardPass) -> tuple[int, ...]:
    """Return the bytes of a token that each block keeps, with what the block reads."""
    model = _without_weights(config)
    kept = []
    for layer, block in enumerate(_blocks(model)):
        wiring = 0 if model.wiring is None else model.wiring.kept_bytes_per_token(layer)
        values = 0 if model.values is None else model.values.kept_bytes_per_token(layer)
        kept.append(block.kept_bytes_per_token(at) + wiring + values)
    return tuple(kept)


@lru_cache(maxsize=16)
def kept_if_recomputed(config: ModelConfig) -> int:
    """Return the bytes of a token that are kept before the blocks if all blocks are recomputed.

    A block then keeps only what it reads: the result of the block before, which later blocks read
    too, and the vectors of its value table.
    """
    model = _without_weights(config)
    states = 4 * config.d_model * config.n_layers
    if model.values is None:
        return states
    return states + sum(model.values.kept_if_recomputed(n) for n in range(config.n_layers))


@lru_cache(maxsize=16)
def _without_weights(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def _blocks(model: Decoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs of training on a token (forward and backward) in a row of `seq_len` tokens.

    These are 6 for each multiply-accumulate. A token sees half of the row on average (Chowdhery et
    al. 2022, "PaLM", appendix B), or less through a window. Recomputation is not counted, because
    MFU measures useful work.
    """
    cost = cost_of(config)
    attention = sum(
        macs * mean_keys(config, reach, seq_len) for reach, macs in cost.macs_per_key.items()
    )
    return 6.0 * (cost.macs_per_token + attention)
