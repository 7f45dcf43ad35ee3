"""The PILONs that ship with Pion; see presets.py."""

from __future__ import annotations

from pion.config.family import Family, Preset, gpt2_shape


def _pilon(shape: Preset, n: int = 0, bands: tuple[int, ...] = ()) -> Preset:
    """Return a PILON of that shape with banks of `n` primitives, or a dense one for 0.

    `bands` has the number of layers of each band. The recipe with banks is the one that its authors
    found best: ternary weights, sub-norms and squared ReLU.
    """
    preset = shape | {
        "positions": "learned",
        "heads": {"qk_norm": False},
        "activation": "relu2" if n else "gelu",
        "init": "uniform",
    }
    if n:
        ends = [sum(bands[: number + 1]) for number in range(len(bands))]
        preset["primitives"] = {
            "n": n,
            "rank": n,
            "top_k": 8,
            "bands": [list(range(end - size, end)) for end, size in zip(ends, bands)],
            "ternary": True,
            "activation_bits": 8,
            "sub_norm": True,
            "diversity_weight": 0.01,
        }
    return preset


def _stock(pilon: Preset) -> Preset:
    """Return a PILON that a stock architecture computes: rotary, with plain primitives."""
    plain = {"ternary": False, "activation_bits": 0, "sub_norm": False}
    return pilon | {"positions": "rotary", "primitives": pilon["primitives"] | plain}


def _small_parts(tiny: bool, shape: Preset) -> Preset:
    size = {"n": 8, "rank": 4, "top_k": 3} if tiny else {"n": 16, "rank": 16, "top_k": 4}
    layers = list(range(shape["n_layers"]))
    half = len(layers) // 2
    return {
        "n_kv_heads": shape["n_heads"],
        "primitives": size | {"bands": [layers[:half], layers[half:]]},
    }


_SMALL = gpt2_shape(512, 8, 8, 512)
_BANKS = _pilon(_SMALL, n=48, bands=(3, 3, 2))
PILON = Family(
    {
        "pilon-48m": _BANKS,
        "pilon-48m-rope": _stock(_BANKS),
        "pilon-48m-dense": _pilon(_SMALL),
        "pilon-360m": _pilon(gpt2_shape(1024, 24, 16, 2048), n=80, bands=(8, 8, 8)),
        "pilon-500m": _pilon(gpt2_shape(1024, 36, 16, 1024), n=96, bands=(12, 12, 12)),
    },
    "pilon-48m",
    _small_parts,
    measured="pilon-360m",
    original="PILON",
)
