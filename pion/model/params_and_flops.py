"""The parameters of a model, its arithmetic and its memory, as its parts state them.

Each part states these numbers next to its maths:

  * `macs_per_token()`: multiply-accumulates with the part's weights, for one token;
  * `macs_per_key()`: multiply-accumulates for one token and one key that the token sees;
  * `kept_bytes_per_token(at)`: what a forward pass keeps of a token for the backward pass. This
    depends on the kernels, so it depends on how the pass is computed (pass_kind.py);
  * `backward_bytes(at, tokens)`: the most that the part's backward pass adds to what is kept.

Nothing else in Pion derives these numbers from a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import get_args

import torch

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.errors import BadInput
from pion.model.attention.masks import mean_keys
from pion.model.attention.reach import Reach
from pion.model.decoder import Decoder
from pion.model.parameters import parameter_roles
from pion.model.pass_kind import PassKind


@dataclass(frozen=True)
class ModelCost:
    """The costs of a whole model.

    Attributes:
        params: number of parameters by role.
        tensors: number of tensors of parameters.
        active_params: number of parameters that one token uses.
        macs_per_token: multiply-accumulates with weights for one token, the head included.
        draft_macs: those of a draft block's steps in training, for one token.
        macs_per_key: by reach of attention, the multiply-accumulates of these layers for one token
            and one key.
    """

    params: Mapping[Role, int]
    tensors: int
    active_params: int
    macs_per_token: int
    macs_per_key: Mapping[Reach, int]
    draft_macs: int = 0

    @property
    def all_params(self) -> int:
        """The number of parameters."""
        return sum(self.params.values())


@lru_cache(maxsize=16)
def cost_of(config: ModelConfig) -> ModelCost:
    """Return the costs of the model that `config` describes, without allocating its weights."""
    model = _without_weights(config)
    parameters = dict(model.named_parameters())
    roles = parameter_roles(model)
    params: dict[Role, int] = {
        role: sum(parameters[name].numel() for name, own in roles.items() if own == role)
        for role in get_args(Role)
    }
    blocks = model.layers
    macs_per_key: dict[Reach, int] = {}
    for block in blocks:
        macs_per_key[block.reach] = macs_per_key.get(block.reach, 0) + block.macs_per_key()
    return ModelCost(
        params=params,
        tensors=len(parameters),
        active_params=model.num_params(active=True),
        macs_per_token=config.head_rows * config.d_model
        + sum(block.macs_per_token() for block in blocks),
        macs_per_key=macs_per_key,
        draft_macs=0 if model.draft is None else model.draft.macs_per_token(config.vocab_size),
    )


def guess_share(config: ModelConfig) -> float:
    """Return the arithmetic of a draft block for one guess, as a share of the model's for a token.

    Raises BadInput for a model without a draft block.
    """
    if config.draft is None:
        raise BadInput("the model has no draft block")
    cost = cost_of(config)
    return cost.draft_macs / config.draft.steps / cost.macs_per_token


@lru_cache(maxsize=64)
def kept_bytes_per_token(config: ModelConfig, at: PassKind) -> tuple[int, ...]:
    """Return the bytes of a token that each block keeps, with what the block reads."""
    model = _without_weights(config)
    parts = model.shared_parts()
    return tuple(
        block.kept_bytes_per_token(at) + sum(p.kept_bytes_per_token(layer, at) for p in parts)
        for layer, block in enumerate(model.layers)
    )


@lru_cache(maxsize=64)
def kept_if_recomputed(config: ModelConfig, at: PassKind) -> tuple[int, ...]:
    """Return the bytes of a token that each block keeps if all blocks are recomputed.

    A block then keeps only what it reads: the result of the block before, which later blocks read
    too, and the vectors of its value table. What its gate sees is kept for the loss.
    """
    parts = _without_weights(config).shared_parts()
    given = 4 * config.d_model * (2 if config.gates else 1)
    return tuple(
        given + sum(part.kept_if_recomputed(layer, at) for part in parts)
        for layer in range(config.n_layers)
    )


@lru_cache(maxsize=64)
def kept_around_blocks(config: ModelConfig, at: PassKind) -> int:
    """Return the bytes of a token that are kept outside the blocks: its ids and the norms."""
    model, at = _without_weights(config), replace(at, compiled=False)  # only blocks are compiled
    norms = model.norm.kept_bytes(at)
    if model.embed_norm is not None:
        norms += model.embed_norm.kept_bytes(at)
    ids = 8 * (4 if at.documents else 2)  # with documents, also their numbers and positions
    return norms + ids


@lru_cache(maxsize=64)
def kept_by_draft(config: ModelConfig, at: PassKind) -> int:
    """Return the bytes of a token that a draft block keeps for the backward pass."""
    block = _without_weights(config).draft
    return 0 if block is None else block.kept_bytes_per_token(at)


@lru_cache(maxsize=64)
def copied_bytes(config: ModelConfig, at: PassKind) -> tuple[int, ...]:
    """Return the bytes of the copies of each block's weights that bf16 products read."""
    return tuple(block.copied_bytes(at) for block in _without_weights(config).layers)


@lru_cache(maxsize=64)
def backward_bytes(config: ModelConfig, at: PassKind, tokens: int) -> tuple[int, ...]:
    """Return the most bytes that each block's backward pass adds to what is kept."""
    return tuple(block.backward_bytes(at, tokens) for block in _without_weights(config).layers)


@lru_cache(maxsize=16)
def shared_table_bytes(config: ModelConfig) -> int:
    """Return the bytes of gradients of shared tables that wait for other layers."""
    return sum(part.shared_gradient_bytes() for part in _without_weights(config).shared_parts())


@lru_cache(maxsize=16)
def matrix_shapes(config: ModelConfig) -> tuple[torch.Size, ...]:
    """Return the shapes of the matrices in the blocks, in the order of the model's parameters."""
    model = _without_weights(config)
    roles = parameter_roles(model)
    return tuple(p.shape for name, p in model.named_parameters() if roles[name] == "matrix")


@lru_cache(maxsize=16)
def _without_weights(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


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
    config: ModelConfig, seq_len: int, additions: int | None = None, *, only_draft: bool = False
) -> TokenFlops:
    """Return the FLOPs of training on a token in a row of `seq_len` tokens.

    A multiply-accumulate is 2 FLOPs forward, and 4 backward: the gradients of both factors. A token
    sees half of the row on average (Chowdhery et al. 2022, "PaLM", appendix B), or less through a
    window.

    `additions` is how many numbers LoRA's additions to a frozen model have (pion/config/lora.py);
    None: all weights are trained. A token multiplies each of these numbers once, and so does a slot
    (a row's tokens share the arithmetic of its slots). A frozen weight has no gradient, so it takes
    2 FLOPs backward. The first layer counts like the others, although only compiled code computes
    the gradient of its input.

    A draft block learns from hidden states that have no gradient. If it is all that is trained
    (`only_draft`), the rest of the model has no backward pass.
    """
    cost = cost_of(config)
    attention = sum(
        macs * mean_keys(config, reach, seq_len) for reach, macs in cost.macs_per_key.items()
    )
    weights, drafts = float(cost.macs_per_token), cost.draft_macs
    added = float(additions or 0)
    if config.slots is not None:  # they pass all blocks, and have no logits
        slots = config.slots.of(seq_len) / seq_len
        weights += slots * (weights - config.head_rows * config.d_model)
        added += slots * added
    macs = weights + attention
    if only_draft:
        return TokenFlops(forward=2.0 * (macs + drafts), backward=4.0 * drafts)
    if additions is None:
        return TokenFlops(forward=2.0 * (macs + drafts), backward=4.0 * (macs + drafts))
    return TokenFlops(
        forward=2.0 * (macs + added),
        backward=2.0 * weights + 4.0 * (added + attention),
    )


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs of training all weights on a token, forward and backward."""
    return token_flops(config, seq_len).total
