"""The models that ship with Pion. A preset is just a set of ModelConfig fields."""

from __future__ import annotations

import math
from typing import Any

from pion.config.pilon_presets import pilon_presets

Preset = dict[str, Any]


def _pion(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> Preset:
    return {
        "family": "pion",
        # That of the published checkpoints. It is 258 rows more than their tokenizer's.
        "vocab_size": 50_258,
        "seq_len": 2048,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
    }


def _pion2(d_model: int, n_layers: int, n_kv_heads: int, d_ff: int, vocab_size: int) -> Preset:
    """Return a Pion 2 (docs/recipes.md): few wide heads, and an output head that is not tied."""
    return _pion(d_model, n_layers, d_model // 128, n_kv_heads, d_ff) | {
        "vocab_size": vocab_size,
        "head_dim": 128,
        "tie_embeddings": False,
        "rope_theta": 100_000.0,
    }


def max_parts(n_layers: int) -> Preset:
    """Return what Pion 2 Max has besides a Pion 2, and no stock architecture computes."""
    return {
        "activation": "relu2",
        "norm_gain": False,
        "logit_cap": 15.0,
        "heads": {"scale": 0.1273},
        "wiring": {"embed_norm": True, "input_mix": True},
        "values": {"layers": list(range(1, n_layers, 2))},
    }


_PION2 = {
    "nano": _pion2(384, 6, n_kv_heads=1, d_ff=1024, vocab_size=16_384),
    "micro": _pion2(512, 12, n_kv_heads=1, d_ff=1408, vocab_size=32_768),
    "small": _pion2(640, 16, n_kv_heads=1, d_ff=1792, vocab_size=32_768),
    "base": _pion2(768, 20, n_kv_heads=2, d_ff=2048, vocab_size=32_768),
    "large": _pion2(1024, 24, n_kv_heads=2, d_ff=2816, vocab_size=32_768),
    "xl": _pion2(1536, 28, n_kv_heads=3, d_ff=4096, vocab_size=32_768),
}


def _tachyon(
    d_model: int, n_layers: int, n_heads: int, d_ff: int, d_shared: int, n_experts: int
) -> Preset:
    experts = {"n": n_experts, "top_k": 2, "shared": 1, "d_shared": d_shared}
    return _pion(d_model, n_layers, n_heads, n_kv_heads=4, d_ff=d_ff) | {
        "family": "tachyon",
        "experts": experts,
    }


def _gpt2(d_model: int, n_layers: int, n_heads: int, seq_len: int) -> Preset:
    """Return the shape of a decoder with GPT-2's vocabulary and proportions."""
    return {
        "vocab_size": 50_257,
        "seq_len": seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_ff": 4 * d_model,
    }


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
    return _gpt2(d_model, n_layers, n_heads, seq_len) | {
        "family": "daisy",
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


def _lepton(d_model: int, n_heads: int, n_layers: int, slots: int, segment: int) -> Preset:
    """Return a Pion of a Lepton's shape, with slots after each segment."""
    hidden = -(-(8 * d_model // 3) // 32) * 32
    return _pion(d_model, n_layers, n_heads, n_kv_heads=n_heads, d_ff=hidden) | {
        "family": "lepton",
        "vocab_size": 50_257,
        "slots": {"per_segment": slots, "segment": segment, "window": 8},
    }


PRESETS: dict[str, Preset] = {
    "pion-nano": _pion(d_model=384, n_layers=6, n_heads=6, n_kv_heads=2, d_ff=1024),
    "pion-micro": _pion(d_model=512, n_layers=12, n_heads=8, n_kv_heads=2, d_ff=1408),
    "pion-small": _pion(d_model=640, n_layers=16, n_heads=10, n_kv_heads=2, d_ff=1792),
    "pion-base": _pion(d_model=768, n_layers=20, n_heads=12, n_kv_heads=4, d_ff=2048),
    "pion-large": _pion(d_model=1024, n_layers=24, n_heads=16, n_kv_heads=4, d_ff=2816),
    "pion-xl": _pion(d_model=1536, n_layers=28, n_heads=16, n_kv_heads=4, d_ff=4096),
    **{f"pion2-{name}": size for name, size in _PION2.items()},
    **{f"pion2-max-{name}": size | max_parts(size["n_layers"]) for name, size in _PION2.items()},
    "tachyon-tiny": _tachyon(512, 8, 8, d_ff=1408, d_shared=704, n_experts=4),
    "tachyon-small": _tachyon(1024, 16, 16, d_ff=2816, d_shared=1408, n_experts=8),
    "tachyon-medium": _tachyon(1536, 20, 16, d_ff=4096, d_shared=2048, n_experts=8),
    "tachyon-large": _tachyon(2048, 24, 16, d_ff=5632, d_shared=2816, n_experts=8),
    "daisy-pico": _daisy(384, 6, 6, window=384, seq_len=16_384),
    "daisy-pico-tied": _daisy(512, 6, 4, window=1024, seq_len=65_536)
    | {"tie_embeddings": True, "head_multiple": 1},
    "daisy-280m": _daisy(768, 12, 6, window=1792, seq_len=65_536),
    "daisy-420m": _daisy(1024, 16, 8, window=2304, seq_len=262_144),
    "daisy-470m": _daisy(1024, 16, 8, window=3456, seq_len=262_144),
    "daisy-1.6b-sparse": _daisy(1600, 48, 25, window=3456, seq_len=16_384),
    "daisy-350m": _daisy(1024, 16, 8, window=3456, seq_len=65_536, old=True),
    "daisy-1.6b": _daisy(1600, 48, 25, window=3456, seq_len=16_384, old=True),
    **pilon_presets(_gpt2),
    "lepton-nano": _lepton(192, 3, 4, slots=1, segment=32),
    "lepton-micro": _lepton(256, 4, 6, slots=2, segment=32),
    "lepton-tiny": _lepton(384, 6, 8, slots=3, segment=64),
    "lepton-small": _lepton(512, 8, 12, slots=4, segment=64),
    "lepton-medium": _lepton(768, 12, 16, slots=6, segment=64),
    "lepton-large": _lepton(1024, 16, 20, slots=8, segment=64),
    "lepton-xl": _lepton(1536, 24, 24, slots=12, segment=64),
    "lepton-xxl": _lepton(2048, 32, 32, slots=16, segment=64),
}
