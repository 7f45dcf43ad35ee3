"""The models that ship with Pion. A preset is just a set of ModelConfig fields."""

from __future__ import annotations

from pion.config.daisy_presets import DAISY
from pion.config.family import Family, Preset, pion_shape
from pion.config.lepton_presets import LEPTON
from pion.config.pilon_presets import PILON


def _pion2(d_model: int, n_layers: int, n_kv_heads: int, d_ff: int, vocab_size: int) -> Preset:
    """Return a Pion 2 (docs/recipes.md): few wide heads, and an output head that is not tied."""
    return pion_shape(d_model, n_layers, d_model // 128, n_kv_heads, d_ff) | {
        "vocab_size": vocab_size,
        "head_dim": 128,
        "tie_embeddings": False,
        "rope_theta": 100_000.0,
    }


_PION2 = {
    "pico": _pion2(128, 4, n_kv_heads=1, d_ff=352, vocab_size=2048)
    | {"n_heads": 2, "head_dim": 64},
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
    return pion_shape(d_model, n_layers, n_heads, n_kv_heads=4, d_ff=d_ff) | {
        "experts": {"n": n_experts, "top_k": 2, "shared": 1, "d_shared": d_shared}
    }


PION = Family(
    {
        "pion-nano": pion_shape(d_model=384, n_layers=6, n_heads=6, n_kv_heads=2, d_ff=1024),
        "pion-micro": pion_shape(d_model=512, n_layers=12, n_heads=8, n_kv_heads=2, d_ff=1408),
        "pion-small": pion_shape(d_model=640, n_layers=16, n_heads=10, n_kv_heads=2, d_ff=1792),
        "pion-base": pion_shape(d_model=768, n_layers=20, n_heads=12, n_kv_heads=4, d_ff=2048),
        "pion-large": pion_shape(d_model=1024, n_layers=24, n_heads=16, n_kv_heads=4, d_ff=2816),
        "pion-xl": pion_shape(d_model=1536, n_layers=28, n_heads=16, n_kv_heads=4, d_ff=4096),
        **{f"pion2-{name}": size for name, size in _PION2.items()},
        **{
            f"pion2-max-{name}": size
            # What no stock architecture computes.
            | {
                "activation": "relu2",
                "norm_gain": False,
                "logit_cap": 15.0,
                "heads": {"scale": 0.1273},
                "wiring": {"embed_norm": True, "input_mix": True},
                "values": {"layers": list(range(1, size["n_layers"], 2))},
            }
            for name, size in _PION2.items()
        },
    },
    "pion-nano",
    lambda tiny, shape: {},
    measured="pion-small",
    original="Pion",
)
TACHYON = Family(
    {
        "tachyon-tiny": _tachyon(512, 8, 8, d_ff=1408, d_shared=704, n_experts=4),
        "tachyon-small": _tachyon(1024, 16, 16, d_ff=2816, d_shared=1408, n_experts=8),
        "tachyon-medium": _tachyon(1536, 20, 16, d_ff=4096, d_shared=2048, n_experts=8),
        "tachyon-large": _tachyon(2048, 24, 16, d_ff=5632, d_shared=2816, n_experts=8),
    },
    "tachyon-tiny",
    lambda tiny, shape: {"experts": {"d_shared": 16 if tiny else 176}},
    measured="tachyon-tiny",
    original="Tachyon 2",
)

# By the value of `family`. It is a label for presets, importers and cards; no computation reads it.
FAMILIES = {
    "pion": PION,
    "tachyon": TACHYON,
    "daisy": DAISY,
    "pilon": PILON,
    "lepton": LEPTON,
}
_ORIGINALS = [family.original for family in FAMILIES.values() if family.original is not None]
# The projects whose checkpoints are read, in words.
ORIGINALS = f"{', '.join(_ORIGINALS[:-1])} or {_ORIGINALS[-1]}"
PRESETS: dict[str, Preset] = {
    name: {"family": label} | preset
    for label, family in FAMILIES.items()
    for name, preset in family.presets.items()
}
