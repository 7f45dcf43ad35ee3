"""Pack the ternary banks of a model for shipping.

A packed bank has five trits in a byte and two scales for each primitive (primitive_banks.py).
Primitives that no recipe uses are left out, which changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.config.primitives import WAYS
from pion.model.forward_pass import State
from pion.model.pilon.primitive_banks import recipe_of
from pion.model.pilon.ternary import pack_trits, rounded, ternary_scales


def packed(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return a model with its ternary banks packed; other models as they are.

    A scale over the primitives that a layer chose gives each layer its own trits. Such a model is
    packed layer by layer, if that is smaller than its banks in fp32; with routed recipes it is not
    packed.
    """
    primitives = config.primitives
    if primitives is None or not primitives.ternary or primitives.packed:
        return config, state
    if primitives.ternary_scale != "chosen":
        return _packed_bands(config, state)
    if config.experts is not None:
        return config, state
    alone = _packed_bands(*_a_band_for_each_layer(config, state))
    bytes_packed = sum(t.nbytes for name, t in alone[1].items() if name.startswith("bands."))
    banks = [tensor for name, tensor in state.items() if name.endswith(".factors")]
    smaller = bytes_packed < 4 * sum(bank.numel() for bank in banks)
    return alone if smaller else (config, state)


def _packed_bands(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    primitives = config.primitives
    assert primitives is not None
    shipped, stored = dict(state), []
    for band, layers in enumerate(primitives.bands):
        pair = []
        for way in WAYS:
            prefix = f"bands.{band}.{way}"
            chosen = _chosen(state, layers, way, primitives.top_k)
            used = chosen.unique()
            trits, scales = _quantised(shipped.pop(f"{prefix}.factors"), used, chosen, config, way)
            shipped[f"{prefix}.packed"] = pack_trits(trits)
            shipped[f"{prefix}.scales"], shipped[f"{prefix}.numbers"] = scales, used
            pair.append(len(used))
        stored.append((pair[0], pair[1]))
    return replace(config, primitives=replace(primitives, stored=tuple(stored))), shipped


def _chosen(state: State, layers: Sequence[int], way: str, top_k: int) -> Tensor:
    """Return the numbers of the primitives that the layers choose, in the order of the recipes."""
    prefixes = tuple(f"blocks.{layer}.feedforward." for layer in layers)
    recipes = [
        tensor.float()
        for name, tensor in state.items()
        if name.startswith(prefixes) and name.endswith(f"{way}_recipe")
    ]
    return torch.cat([recipe_of(logits, top_k).chosen for logits in recipes])


def _quantised(
    factors: Tensor, used: Tensor, chosen: Tensor, config: ModelConfig, way: str
) -> tuple[Tensor, Tensor]:
    """Return the trits of the used primitives as int8, and their scales (used, 2)."""
    assert config.primitives is not None
    of = config.primitives.ternary_scale
    trits, scales = [], []
    for factor in factors.float().split(widths(config, way), dim=-1):
        # A mean over all chosen ones is rounded as the model rounds it: in their order.
        scale = ternary_scales(factor, factor[used if of == "primitive" else chosen], of)
        trits.append(rounded(factor[used], scale, 1).to(torch.int8))
        scales.append(scale[:, 0].expand(len(used), 1))
    return torch.cat(trits, dim=-1), torch.cat(scales, dim=1)


def widths(config: ModelConfig, way: str) -> tuple[int, int]:
    """Return d_in and d_out of a bank."""
    pair = config.d_model, config.d_ff
    return pair if way == "up" else pair[::-1]


def _a_band_for_each_layer(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return the model with a band for each layer, which has only the primitives that it chose."""
    primitives = config.primitives
    assert primitives is not None
    band_of = primitives.band_of()
    alone = {name: tensor for name, tensor in state.items() if not name.startswith("bands.")}
    for layer in range(config.n_layers):
        band, layer_prefix = f"bands.{band_of[layer]}.", f"bands.{layer}."
        alone |= {
            layer_prefix + n.removeprefix(band): t for n, t in state.items() if n.startswith(band)
        }
    bands = tuple((layer,) for layer in range(config.n_layers))
    return replace(config, primitives=replace(primitives, bands=bands)), alone
