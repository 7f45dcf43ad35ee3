"""The rotary settings of stock architectures of transformers, in both spellings.

transformers 5 writes one object, `rope_parameters`. transformers 4 wrote `rope_theta` and, for
scaled positions, the object `rope_scaling`. If a config has both objects, transformers reads
`rope_scaling`. A value in an object comes before one outside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.later_fields import shown
from pion.rope_scaling import RopeScaling

# Of all architectures here: RotaryEmbeddingConfigMixin.default_theta.
DEFAULT_THETA = 10_000.0
TYPES = ("default", "llama3")
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
_ORIGINAL = "original_max_position_embeddings"


def settings(config: ModelConfig) -> dict[str, Any]:
    """Return the rotary fields of a config.

    Settings that are not the defaults are written in both spellings: transformers 4 and other
    programs that only know the older one would compute something else without a word.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if scaling is None:
        old = {} if theta == DEFAULT_THETA else {"rope_theta": theta}
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, **old}
    rope = {"rope_type": "llama3"}
    rope |= {name: getattr(scaling, name) for name in (*_FACTORS, _ORIGINAL)}
    return {
        "rope_parameters": {"rope_theta": theta, **rope},
        "rope_theta": theta,
        "rope_scaling": rope,
    }


def read(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of our settings.

    Raises BadInput for another kind of rotary positions than `TYPES`, and for missing factors.
    """
    rope = _object(hf_config)
    for where in (rope, hf_config):
        if where.get("partial_rotary_factor") not in (None, 1):
            text = shown(where["partial_rotary_factor"])
            raise BadInput(f"config.json: partial_rotary_factor is {text}; only 1 is supported")
    theta = rope.get("rope_theta")
    if theta is None:
        theta = hf_config.get("rope_theta", DEFAULT_THETA)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in TYPES:
        known = " and ".join(map(repr, TYPES))
        raise BadInput(f"config.json: rope_type is {shown(rope_type)}; only {known} are supported")
    if rope_type == "default":
        return {"rope_theta": theta}
    missing = [name for name in _FACTORS if name not in rope]
    if missing:
        raise BadInput(f"config.json: rotary positions of type llama3 need {', '.join(missing)}")
    candidates = (hf_config.get(_ORIGINAL), rope.get(_ORIGINAL))
    original = next((tokens for tokens in candidates if tokens is not None), None)
    if original is None:
        original = hf_config["max_position_embeddings"]
    factors = {name: rope[name] for name in _FACTORS}
    scaling = RopeScaling(**factors, original_max_position_embeddings=original)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _object(hf_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object with rotary settings, {} if there is none. Raises BadInput for others."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = hf_config.get(name)
        if rope in (None, {}):
            continue
        if not isinstance(rope, Mapping):
            raise BadInput(f"config.json: {name} is {shown(rope)}; it must be an object")
        for inner, value in rope.items():
            if isinstance(value, Mapping):
                raise BadInput(
                    f"config.json: {name} has settings for {shown(inner)} alone; only settings "
                    "for all layers are supported"
                )
        return rope
    return {}
