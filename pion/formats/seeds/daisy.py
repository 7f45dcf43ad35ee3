"""A checkpoint of the original Daisy-Wee: {step, model, best_val, hparams, …}, all plain values.

Two vintages have this layout. In the README's (October 2025, model_class …GPT2Core), every layer
has attention, and three value tables serve the first and the last three layers, not normalized.
Later, some layers have attention, and some of these have a separate table.

The seed rotates queries and keys by the opposite angle. Negating the second half of each head's
rows in W_q and W_k gives the same scores, and nothing else reads queries and keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pion.config.daisy_presets import OLD_TABLES, old_skips, old_value_layers, skips
from pion.config.model_config import ModelConfig
from pion.config.parts import Values, Windows, Wiring
from pion.config.presets import PRESETS
from pion.errors import BadInput
from pion.formats.seeds.read import SeedCheckpoint, State, renamed, sizes

BLOCK = 128
# The head of an untied model has a multiple of this many rows.
HEAD_MULTIPLE = 128
OLD_CLASS = "GPT2Core"

# What all Daisy-Wees have in common.
_COMMON = {
    name: PRESETS["daisy-280m"][name]
    for name in (
        "family",
        "rope_theta",
        "norm_eps",
        "norm_gain",
        "activation",
        "logit_cap",
        "init",
        "heads",
    )
}

# A layer's four projections, one after the other.
_QKVO = r"blocks\.(\d+)\.attn\.qkvo_w"
_NAMES = {
    r"embed\.weight": "embed.weight",
    r"lm_head_w": "lm_head.weight",
    r"blocks\.(\d+)\.mlp\.fc_w": r"blocks.\1.feedforward.up_proj.weight",
    r"blocks\.(\d+)\.mlp\.proj_w": r"blocks.\1.feedforward.down_proj.weight",
}


def from_daisy(checkpoint: SeedCheckpoint) -> tuple[ModelConfig, State]:
    """Return the model's settings and weights. Raises BadInput for weights of another model.

    Which layers have attention and value tables, and all widths, come from the tensors. Heads,
    context and window come from the recorded `hparams`; without them, from the first published
    model with these widths.
    """
    tensors = checkpoint.tensors
    n_layers = _count_layers(tensors)
    attention = _layers(tensors, _QKVO)
    tables = _layers(tensors, r"value_embeds\.(\d+)\.weight")
    if not attention:
        raise BadInput("the weights have no blocks.N.attn.qkvo_w: no layer has attention")
    d_ff, _ = sizes(tensors, "blocks.0.mlp.fc_w", 2)
    vocab_size, d_model = sizes(tensors, _embedding(tensors), 2)
    recorded = checkpoint.settings or _published(n_layers, d_model)
    old = _is_old(recorded, tables, attention, n_layers)
    head_dim = _need(recorded, "head_dim")
    if d_model % head_dim:
        raise BadInput(f"hparams: head_dim {head_dim} does not divide the width {d_model}")
    tied = "embed.weight" not in tensors or recorded.get("tied_embeddings") is True
    config = ModelConfig.from_dict(
        _COMMON
        | {
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": d_model // head_dim,
            "n_kv_heads": d_model // head_dim,
            "head_dim": head_dim,
            "d_ff": d_ff,
            "vocab_size": vocab_size,
            "seq_len": _need(recorded, "max_seq_len"),
            "tie_embeddings": tied,
            "head_multiple": 1 if tied else HEAD_MULTIPLE,
            "windows": Windows(tokens=_need(recorded, "attention_window_len"), block=BLOCK),
            "wiring": Wiring(
                attention_layers=None if len(attention) == n_layers else tuple(attention),
                attention_norm=False,
                embed_norm=True,
                input_mix=True,
                skips=old_skips(n_layers) if old else skips(n_layers),
            ),
            "values": _values(tables, n_layers, old),
        }
    )
    return config, _translated(tensors, config)


def _count_layers(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of layers that `scalars` says and the other tensors have."""
    scalars = tensors.get("scalars")
    if scalars is None or scalars.ndim != 1 or len(scalars) == 0 or len(scalars) % 5:
        raise BadInput("the weights have no `scalars`, 5 for each layer: this is not a Daisy-Wee")
    n_layers = len(scalars) // 5
    layers = set(_layers(tensors, r"blocks\.(\d+)\.mlp\.fc_w"))
    missing = next((layer for layer in range(n_layers) if layer not in layers), None)
    if missing is not None:
        raise BadInput(f"the weights have no blocks.{missing}.mlp.fc_w")
    return n_layers


def _values(tables: list[int], n_layers: int, old: bool) -> Values | None:
    if not tables:
        return None
    if old:
        return Values(**old_value_layers(n_layers), normed=False)
    return Values(layers=tuple(tables))


def _embedding(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the embedding, which a tied model has under the head's name only."""
    for name in ("embed.weight", "lm_head_w"):
        if name in tensors:
            return name
    raise BadInput("the weights have no embed.weight and no lm_head_w")


def _published(n_layers: int, d_model: int) -> dict[str, Any]:
    """Return what the hparams of the published model with these widths say."""
    for preset in PRESETS.values():
        if (preset["family"], preset["n_layers"], preset["d_model"]) == (
            "daisy",
            n_layers,
            d_model,
        ):
            return {
                "head_dim": d_model // preset["n_heads"],
                "max_seq_len": preset["seq_len"],
                "attention_window_len": preset["windows"]["tokens"],
            }
    raise BadInput(
        f"the file has no hparams, and no published Daisy-Wee has {n_layers} layers of width "
        f"{d_model}: the width of its heads is unknown"
    )


def _is_old(
    recorded: Mapping[str, Any], tables: list[int], attention: list[int], n_layers: int
) -> bool:
    """Return whether this is the README's vintage, by its class or else by its tensors."""
    if "model_class" in recorded:
        return str(recorded["model_class"]).endswith(OLD_CLASS)
    return tables == list(range(OLD_TABLES)) and len(attention) == n_layers


def _layers(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Return the layers that have a tensor of this name, in order."""
    matches = (re.fullmatch(pattern, name) for name in tensors)
    return sorted(int(match[1]) for match in matches if match)


def _need(recorded: Mapping[str, Any], name: str) -> int:
    value = recorded.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"hparams: {name} is {value!r}; it must be a whole number above 0")
    return value


def _translated(tensors: Mapping[str, Tensor], config: ModelConfig) -> State:
    """Return the tensors by our names. Raises BadInput for a tensor without a name of ours."""
    names = _NAMES | {
        rf"value_embeds\.{layer}\.weight": f"values.tables.{number}.weight"
        for number, layer in enumerate(_layers(tensors, r"value_embeds\.(\d+)\.weight"))
    }
    plain = dict(tensors)
    joined = _scalars(plain.pop("scalars"), config)
    for name in tensors:
        if match := re.fullmatch(_QKVO, name):
            joined |= _projections(int(match[1]), plain.pop(name), config)
    state = renamed(plain, names, "Daisy-Wee") | joined
    if config.tie_embeddings and "lm_head.weight" in state:
        head = state.pop("lm_head.weight")
        if not head.equal(state.setdefault("embed.weight", head)):
            raise BadInput("lm_head_w differs from embed.weight, but they should be tied")
    return state


def _projections(layer: int, qkvo: Tensor, config: ModelConfig) -> State:
    """Return the four projections of a layer from a tensor (4, d_model, d_model)."""
    expected = (4, config.d_model, config.d_model)
    if qkvo.shape != expected:
        raise BadInput(f"blocks.{layer}.attn.qkvo_w has shape {tuple(qkvo.shape)}, not {expected}")
    query, key, value, output = (matrix.float() for matrix in qkvo)
    prefix = f"blocks.{layer}.attention"
    return {
        f"{prefix}.q_proj.weight": turned(query, config.head_dim),
        f"{prefix}.k_proj.weight": turned(key, config.head_dim),
        f"{prefix}.v_proj.weight": value,
        f"{prefix}.o_proj.weight": output,
    }


def turned(weight: Tensor, head_dim: int) -> Tensor:
    """Return W_q or W_k with the second half of each head's rows negated."""
    heads = weight.reshape(-1, 2, head_dim // 2, weight.shape[-1]).clone()
    heads[:, 1].neg_()
    return heads.view_as(weight)


def _scalars(scalars: Tensor, config: ModelConfig) -> State:
    """Return the gates, then the mixes of embeddings, then the mixes of values, of all layers."""
    gates, mix, values = scalars.split([config.n_layers, 2 * config.n_layers, 2 * config.n_layers])
    state = {"wiring.gates": gates, "wiring.mix": mix.view(-1, 2)}
    return state | ({"values.mix": values.view(-1, 2)} if config.values is not None else {})
