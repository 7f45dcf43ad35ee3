"""The names that the seeds Pion and Tachyon give to the tensors of a decoder, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pion.errors import BadInput

State = dict[str, Tensor]

# Their names and ours. A block's parts have the prefix "layers.{i}." and "blocks.{i}.".
_NAMES = {
    "embed.weight": "embed.weight",
    "norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "norm1.weight": "attention_norm.weight",
    "attn.q_proj.weight": "attention.q_proj.weight",
    "attn.k_proj.weight": "attention.k_proj.weight",
    "attn.v_proj.weight": "attention.v_proj.weight",
    "attn.o_proj.weight": "attention.o_proj.weight",
    "attn.q_norm.weight": "attention.q_norm.weight",
    "attn.k_norm.weight": "attention.k_norm.weight",
    "norm2.weight": "feedforward_norm.weight",
}


def renamed(tensors: Mapping[str, Tensor], feedforward: Mapping[str, str]) -> State:
    """Return the tensors by our names.

    `feedforward` has the names inside a feed-forward layer, as patterns and their replacements.
    Raises BadInput for a tensor without a name of ours.
    """
    patterns = {re.escape(theirs): ours for theirs, ours in _BLOCK_NAMES.items()}
    patterns.update(feedforward)
    state = {}
    for key, tensor in tensors.items():
        block = re.fullmatch(r"layers\.(\d+)\.(.+)", key)
        if block is None and key in _NAMES:
            state[_NAMES[key]] = tensor
            continue
        for theirs, ours in patterns.items():
            match = re.fullmatch(theirs, block[2]) if block else None
            if block and match:
                state[f"blocks.{block[1]}.{match.expand(ours)}"] = tensor
                break
        else:
            raise BadInput(f"unexpected tensor {key}: no seed's model has a tensor of that name")
    return state


def untied(state: State) -> State:
    """Return the state without a copy of the embedding under the head's name.

    Raises BadInput if that copy differs from the embedding.
    """
    head = state.pop("lm_head.weight", None)
    if head is not None and not head.equal(state["embed.weight"]):
        raise BadInput("lm_head.weight differs from embed.weight, but they should be tied")
    return state


def shape_of(state: State, kind: str) -> dict[str, int]:
    """Return the settings that the shapes of the tensors tell.

    Raises BadInput if a needed tensor is missing: this is not a model of that `kind`.
    """
    for needed in ("embed.weight", "blocks.0.attention.q_norm.weight"):
        if needed not in state:
            raise BadInput(f"the weights have no {needed}: this is not a {kind} model")
    vocab_size, d_model = sizes(state, "embed.weight", 2)
    (head_dim,) = sizes(state, "blocks.0.attention.q_norm.weight", 1)

    def heads(name: str) -> int:
        return sizes(state, name, 2)[0] // head_dim if name in state else 0

    return {
        "d_model": d_model,
        "n_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "n_heads": heads("blocks.0.attention.q_proj.weight"),
        "n_kv_heads": heads("blocks.0.attention.k_proj.weight"),
        "vocab_size": vocab_size,
        "head_dim": head_dim,
    }


def sizes(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises BadInput for another number of dimensions, or a 0."""
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise BadInput(
            f"{name} has shape {shape}; it must have {dimensions} dimensions, all above 0"
        )
    return shape
