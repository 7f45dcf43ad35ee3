"""The optional parts of a decoder. A model without any part is a Pion: dense, with full attention.

A part is a small record of settings. Its maths has its own file in pion/model. No code asks for a
family's name: a family is a preset that names parts, and any mixture of parts is a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pion.errors import BadInput
from pion.later_fields import values_before

Part = TypeVar("Part")

# Grouped products read rows in pieces of this many bytes.
ROW_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of each feed-forward layer.

    A router sends each token to `top_k` of `n` experts of width `d_ff`, and weighs their results by
    its probabilities, which are rescaled to add up to 1. No token is dropped. In addition, every
    token goes through `shared` experts of width `d_shared`.
    """

    n: int
    """Routed experts in a layer."""
    top_k: int = 2
    """Routed experts that a token uses."""
    shared: int = 1
    """Experts that every token uses."""
    d_shared: int = 0
    """Width of one shared expert."""
    balance_weight: float = 0.01
    """Weight of the loss that spreads tokens evenly over experts."""
    z_weight: float = 0.001
    """Weight of the loss that keeps the router's logits small."""
    balance: Literal["row", "batch"] = "row"
    """What the balance is computed over. Only the importer sets "batch", to follow a seed."""

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("top_k", 1), ("shared", 0), ("d_shared", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadInput(
                    f"experts.{name} is {value!r}; it must be a whole number of at least {least}"
                )
        if self.shared and not self.d_shared:
            raise BadInput("experts.d_shared: give the width of the shared experts")
        if self.top_k > self.n:
            raise BadInput(f"experts.top_k {self.top_k} is more than experts.n {self.n}")
        for name in ("balance_weight", "z_weight"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
                raise BadInput(f"experts.{name} is {value!r}; it must be a number of at least 0")
        if self.balance not in ("row", "batch"):
            raise BadInput(f"experts.balance is {self.balance!r}; it must be row or batch")


def build_part(kind: type[Part], value: Any, name: str) -> Part:
    """Return the part that a record or a job describes by its fields.

    Raises BadInput for an unknown or a missing field, or a value that the part can't have.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} is {value!r}; it must be a section with fields")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise BadInput(f"unknown model field {name}.{unknown[0]}; it has {', '.join(fields)}")
    given = values_before(kind) | dict(value)
    missing = [
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and key not in given
    ]
    if missing:
        raise BadInput(f"the model's settings are missing {name}.{missing[0]}")
    return kind(**given)
