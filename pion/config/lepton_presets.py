"""The Leptons that ship with Pion; see presets.py."""

from __future__ import annotations

from pion.config.family import Family, Preset, pion_shape


def _lepton(d_model: int, n_heads: int, n_layers: int, slots: int, segment: int) -> Preset:
    """Return a Pion of a Lepton's shape, with slots after each segment."""
    hidden = -(-(8 * d_model // 3) // 32) * 32
    return pion_shape(d_model, n_layers, n_heads, n_kv_heads=n_heads, d_ff=hidden) | {
        "vocab_size": 50_257,
        "slots": {"per_segment": slots, "segment": segment, "window": 8},
    }


def _small_parts(tiny: bool, shape: Preset) -> Preset:
    return {"slots": {"per_segment": 2, "segment": 8 if tiny else 64, "window": 2}}


LEPTON = Family(
    {
        "lepton-nano": _lepton(192, 3, 4, slots=1, segment=32),
        "lepton-micro": _lepton(256, 4, 6, slots=2, segment=32),
        "lepton-tiny": _lepton(384, 6, 8, slots=3, segment=64),
        "lepton-small": _lepton(512, 8, 12, slots=4, segment=64),
        "lepton-medium": _lepton(768, 12, 16, slots=6, segment=64),
        "lepton-large": _lepton(1024, 16, 20, slots=8, segment=64),
        "lepton-xl": _lepton(1536, 24, 24, slots=12, segment=64),
        "lepton-xxl": _lepton(2048, 32, 32, slots=16, segment=64),
    },
    "lepton-small",
    _small_parts,
    measured="lepton-small",
)
