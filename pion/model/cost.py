"""What a model costs: parameters, arithmetic and memory, as its parts state them.

Each part states its costs next to its maths:

  * `macs_per_token()`: multiply-accumulates with the part's weights, for one token;
  * `macs_per_key()`: multiply-accumulates for one token and one key that the token sees;
  * `kept_bytes_per_token(width)`: what the forward pass of a block keeps for the backward pass;
    `width` is the number of bytes of an element in matrix products.

Nothing else in Pion derives these numbers from a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import torch

from pion.config import ModelConfig
from pion.model.decoder import Block, Decoder
from pion.model.roles import Role, parameter_roles


@dataclass(frozen=True)
class ModelCost:
    """The costs of a whole model.

    Attributes:
        params: number of parameters by role.
        active_params: number of parameters that one token uses.
        macs_per_token: multiply-accumulates with weights for one token, the head included.
        macs_per_key: multiply-accumulates of all layers for one token and one key.
        kept_bytes: by the bytes of an element in matrix products, what each block keeps per token.
    """

    params: Mapping[Role, int]
    active_params: int
    macs_per_token: int
    macs_per_key: int
    kept_bytes: Mapping[int, tuple[int, ...]]

    @property
    def all_params(self) -> int:
        """The number of parameters."""
        return sum(self.params.values())


@lru_cache(maxsize=16)
def cost_of(config: ModelConfig) -> ModelCost:
    """Return the costs of the model that `config` describes, without allocating its weights."""
    with torch.device("meta"):
        model = Decoder(config)
    parameters = dict(model.named_parameters())
    params: dict[Role, int] = dict.fromkeys(get_args(Role), 0)
    for name, role in parameter_roles(model).items():
        params[role] += parameters[name].numel()
    head = config.vocab_size * config.d_model
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    return ModelCost(
        params=params,
        active_params=model.num_params(active=True),
        macs_per_token=head + sum(block.macs_per_token() for block in blocks),
        macs_per_key=sum(block.macs_per_key() for block in blocks),
        kept_bytes={
            width: tuple(block.kept_bytes_per_token(width) for block in blocks) for width in (2, 4)
        },
    )


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs of training on a token (forward and backward) in a row of `seq_len` tokens.

    These are 6 for each multiply-accumulate. A token sees half of the row on average (Chowdhery et
    al. 2022, "PaLM", appendix B). Recomputation is not counted, because MFU measures useful work.
    """
    cost = cost_of(config)
    return 6.0 * cost.macs_per_token + 3.0 * cost.macs_per_key * seq_len
