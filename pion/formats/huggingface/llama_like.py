"""What an architecture of transformers is, and its rotary settings.

Rotary settings have two spellings. transformers 5 writes one object, `rope_parameters`.
transformers 4 wrote `rope_theta` and, for scaled positions, the object `rope_scaling`. If a config
has both objects, transformers reads `rope_scaling`. A value in an object comes before one outside
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pion.config.model_config import ModelConfig
from pion.config.parts import RopeScaling
from pion.errors import BadInput
from pion.formats.model_tensors import Rows
from pion.later_fields import shown

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = "dict[str, Tensor]"
# Entries of a config.json.
Fields: TypeAlias = Mapping[str, Any]

HEAD = "lm_head.weight"
# Of all architectures here: RotaryEmbeddingConfigMixin.default_theta.
DEFAULT_THETA = 10_000.0
ROPE_TYPES = ("default", "llama3")
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
_ORIGINAL = "original_max_position_embeddings"


class Architecture(ABC):
    """A model class of transformers, and how our models become its models and back.

    Attributes:
        name: the name of the class.
        model_type: its name in a config.json.
        stock: whether it is part of transformers; the export of any other has modelling files.
    """

    name: str
    model_type: str
    stock = True

    @property
    def short_name(self) -> str:
        """The name without what every class's name ends with."""
        return self.name.removesuffix("ForCausalLM")

    def misfit(self, config: ModelConfig) -> str | None:
        """Return why the class can't compute the model; None if it can."""
        lacks = self.lacks(config)
        return f"{self.short_name} does not support {', '.join(lacks)}" if lacks else None

    @abstractmethod
    def lacks(self, config: ModelConfig) -> list[str]:
        """Return which settings of the model the class does not have."""

    @abstractmethod
    def write(self, config: ModelConfig, state: State) -> tuple[dict[str, Any], State]:
        """Return the config fields and the state dict."""

    @abstractmethod
    def read(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        """Return our settings for config fields. Raises BadInput."""

    @abstractmethod
    def rename(self, config: ModelConfig, hf_state: State) -> State:
        """Return the tensors by our names. Raises BadInput."""

    @abstractmethod
    def sources(self, config: ModelConfig, ours: Iterable[str]) -> dict[str, list[Rows]]:
        """Return of which rows of its tensors each of `ours` is made: of one, or of a stack."""


def require(hf_config: Fields, name: str, allowed: tuple[Any, ...]) -> None:
    """Raise BadInput if a field has none of the allowed values. It may be missing."""
    value = hf_config.get(name, allowed[0])
    if value not in allowed:
        verb = "is" if len(allowed) == 1 else "are"
        raise BadInput(
            f"config.json: {name} is {shown(value)}; only {' and '.join(map(repr, allowed))} {verb}"
            " supported"
        )


def rotary_settings(config: ModelConfig) -> dict[str, Any]:
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


def read_rotary(hf_config: Fields, rope_types: tuple[str, ...] = ROPE_TYPES) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of our settings.

    Raises BadInput for another kind of rotary positions than `rope_types`, and for missing factors.
    """
    rope = _rotary_object(hf_config)
    for where in (rope, hf_config):
        if where.get("partial_rotary_factor") not in (None, 1):
            raise BadInput(
                f"config.json: partial_rotary_factor is {shown(where['partial_rotary_factor'])}; "
                "only 1 is supported"
            )
    theta = rope.get("rope_theta")
    if theta is None:
        theta = hf_config.get("rope_theta", DEFAULT_THETA)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    require({"rope_type": rope_type}, "rope_type", rope_types)
    if rope_type == "default":
        return {"rope_theta": theta}
    missing = [name for name in _FACTORS if name not in rope]
    if missing:
        raise BadInput(f"config.json: rotary positions of type llama3 need {', '.join(missing)}")
    given = [where.get(_ORIGINAL) for where in (hf_config, rope)]
    given.append(hf_config["max_position_embeddings"])
    factors = {name: rope[name] for name in _FACTORS}
    factors[_ORIGINAL] = next(tokens for tokens in given if tokens is not None)
    return {"rope_theta": theta, "rope_scaling": RopeScaling(**factors)}


def _rotary_object(hf_config: Mapping[str, Any]) -> Mapping[str, Any]:
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
