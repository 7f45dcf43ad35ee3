"""The settings of a decoder: everything that decides its weights' shapes and its maths."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from types import UnionType
from typing import Any

from pion.errors import BadInput
from pion.later_fields import later_field, to_record, values_before
from pion.parts import PARTS, ROW_BYTES, Experts, build_part
from pion.presets import PRESETS

# The values of `family`. It is a label for presets, importers and cards; no computation reads it.
FAMILIES = ("pion", "tachyon")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder's settings. Raises BadInput for values that no model can have.

    Declare a field that you add with `later_field` (later_fields.py), so that runs stay valid.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    """Key/value heads; each serves n_heads / n_kv_heads consecutive query heads."""
    d_ff: int
    vocab_size: int
    """Embedding rows; may exceed the number of ids that the tokenizer produces."""
    seq_len: int
    """The longest sequence the model reads, in tokens."""
    head_dim: int = None  # type: ignore[assignment]  # filled in by __post_init__
    """Width of one head; d_model / n_heads unless given."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    softcap: float | None = None
    """Attention scores s become softcap * tanh(s / softcap), in training and inference alike."""
    tie_embeddings: bool = True
    init_std: float = 0.02
    family: str = "pion"
    experts: Experts | None = later_field(None, before=None)
    """A mixture of experts in place of each feed-forward layer; d_ff is then one expert's width."""

    def __post_init__(self) -> None:
        if self.experts is not None:
            object.__setattr__(self, "experts", build_part(Experts, self.experts, "experts"))
            if 2 * self.d_ff % ROW_BYTES or 2 * self.d_model % ROW_BYTES:
                raise BadInput(
                    f"d_ff {self.d_ff} and d_model {self.d_model} must be multiples of "
                    f"{ROW_BYTES // 2} in a model with experts: grouped products need rows of a "
                    f"multiple of {ROW_BYTES} bytes"
                )
        for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"):
            self._require_positive(name, int)
        for name in ("vocab_size", "seq_len"):
            self._require_positive(name, int)
        if self.head_dim is None:
            if self.d_model % self.n_heads:
                raise BadInput(
                    f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}: "
                    f"change one of them or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        self._require_positive("head_dim", int)
        if self.head_dim % 2:
            raise BadInput(f"head_dim {self.head_dim} is odd: rotary positions need pairs")
        if self.n_heads % self.n_kv_heads:
            raise BadInput(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        for name in ("rope_theta", "norm_eps", "init_std"):
            self._require_positive(name, int | float)
        if self.softcap is not None:
            self._require_positive("softcap", int | float)
        if self.family not in FAMILIES:
            raise BadInput(f"unknown family {self.family!r}{closest(self.family, FAMILIES)}")

    def _require_positive(self, name: str, kind: type | UnionType) -> None:
        value: Any = getattr(self, name)
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or not value > 0:
            number = "whole number" if kind is int else "number"
            raise BadInput(f"{name} is {value!r}; it must be a {number} above 0")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """Return the named preset (pion/presets.py) with some fields replaced.

        Raises BadInput for an unknown preset or field.
        """
        if name not in PRESETS:
            raise BadInput(
                f"unknown model preset {name!r}{closest(name, PRESETS)}; "
                f"the presets are {', '.join(PRESETS)}"
            )
        fields = PRESETS[name] | overrides
        for part in PARTS:
            given, preset = overrides.get(part), PRESETS[name].get(part)
            if isinstance(given, dict) and preset is not None:
                fields[part] = preset | given
        return cls.of(fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a checkpoint records them; see later_fields.py."""
        return to_record(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ModelConfig:
        """Return the settings that `to_dict` recorded, by this version or by an older one.

        Raises BadInput for an unknown or a missing field.
        """
        return cls.of(values_before(cls) | record)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> ModelConfig:
        """Return these settings, with defaults for all others.

        Raises BadInput for an unknown or a missing field.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise BadInput(f"unknown model field {name!r}{closest(name, known)}")
        missing = [
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and name not in fields
        ]
        if missing:
            raise BadInput(f"the model's settings are missing {', '.join(missing)}")
        return cls(**fields)


def closest(name: object, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest choice, or "" if none is near."""
    near = difflib.get_close_matches(str(name), list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
