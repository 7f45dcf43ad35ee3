"""The Daisy-Wees that ship with Pion; see presets.py."""

from __future__ import annotations

import math

from pion.config.family import Family, Preset, gpt2_shape

# Small models list their layers with attention instead of spreading them.
FEW_LAYERS = {4: (0, 1, 3), 6: (0, 1, 3, 5)}
ATTENTION_STRIDE = 8
# The README's vintage: how many value tables serve the first, and again the last layers.
OLD_TABLES = 3


def attention_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers with attention: at least 2 + log2(n_layers), spread evenly."""
    if n_layers in FEW_LAYERS:
        return FEW_LAYERS[n_layers]
    least = max(math.ceil(n_layers / ATTENTION_STRIDE), math.ceil(2 + math.log2(n_layers)))
    return _spread(range(n_layers), min(n_layers, least))


def value_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers with a value table: 60 % of those with attention, from 4 to 10."""
    layers = attention_layers(n_layers)
    wanted = max(4, min(10, round(0.6 * len(layers))))
    return _spread(layers, min(len(layers), wanted))


def skips(n_layers: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs (to, from): layers after the middle read layers before it."""
    count, middle = max(1, int(math.log2(n_layers)) - 1), n_layers // 2
    stride = max(1, middle // (count + 1))
    return tuple((middle + t, middle - t * stride) for t in range(1, count + 1))


def old_skips(n_layers: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs (to, from) of the README's vintage: layers up to the middle read others."""
    count, middle = max(1, n_layers // 8), n_layers // 2
    stride = max(1, n_layers // (2 * (count + 1)))
    pairs = ((middle - count + t - 1, t) for t in range(1, count + 1))
    return tuple((to, to - t * stride) for to, t in pairs)


def old_value_layers(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the README vintage's layers with a table, and the table of each."""
    first = tuple(range(OLD_TABLES))
    return {"layers": (*first, *range(n_layers - OLD_TABLES, n_layers)), "tables": (*first, *first)}


def _spread(items: range | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return `count` of the items at even distances, with the first and the last."""
    if count == 1:
        return (items[0],)
    return tuple(items[round(i * (len(items) - 1) / (count - 1))] for i in range(count))


def _daisy(
    d_model: int, n_layers: int, n_heads: int, window: int, seq_len: int, old: bool = False
) -> Preset:
    """Return a Daisy-Wee; `old`: of the vintage that the README of Daisy-Wee describes."""
    return gpt2_shape(d_model, n_layers, n_heads, seq_len) | {
        "rope_theta": 1024.0,
        "norm_eps": 2**-23,
        "norm_gain": False,
        "activation": "relu2",
        "logit_cap": 15.0,
        "tie_embeddings": False,
        "head_multiple": 128,
        "init": "zero_outputs",
        "heads": {"scale": 0.12, "value_norm": True, "rotary": "half"},
        "windows": {"tokens": window},
        "wiring": {
            "attention_layers": None if old else attention_layers(n_layers),
            "attention_norm": False,
            "embed_norm": True,
            "input_mix": True,
            "skips": old_skips(n_layers) if old else skips(n_layers),
        },
        "values": (
            {**old_value_layers(n_layers), "normed": False}
            if old
            else {"layers": value_layers(n_layers)}
        ),
    }


def _small_parts(tiny: bool, shape: Preset) -> Preset:
    return {
        "n_layers": 4,
        "n_kv_heads": shape["n_heads"],
        "windows": {"tokens": 16, "block": 8} if tiny else {"tokens": 256, "block": 128},
        "wiring": {"attention_layers": [0, 1, 3], "skips": [[2, 1], [3, 0]]},
        "values": {"layers": [0, 3]},
    }


DAISY = Family(
    {
        "daisy-pico": _daisy(384, 6, 6, window=384, seq_len=16_384),
        "daisy-pico-tied": _daisy(512, 6, 4, window=1024, seq_len=65_536)
        | {"tie_embeddings": True, "head_multiple": 1},
        "daisy-280m": _daisy(768, 12, 6, window=1792, seq_len=65_536),
        "daisy-420m": _daisy(1024, 16, 8, window=2304, seq_len=262_144),
        "daisy-470m": _daisy(1024, 16, 8, window=3456, seq_len=262_144),
        "daisy-1.6b-sparse": _daisy(1600, 48, 25, window=3456, seq_len=16_384),
        "daisy-350m": _daisy(1024, 16, 8, window=3456, seq_len=65_536, old=True),
        "daisy-1.6b": _daisy(1600, 48, 25, window=3456, seq_len=16_384, old=True),
    },
    "daisy-pico",
    _small_parts,
    measured="daisy-280m",
    original="Daisy-Wee",
)
