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

MEANING = "meaning"
# Grouped products need rows of a multiple of this many bytes.
ROW_BYTES = 16


def setting(meaning: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of a part that a job can set; `meaning` is for the job's reference."""
    return dataclasses.field(default=default, metadata={MEANING: meaning})


def imported(default: Any) -> Any:
    """Declare a field of a part that only an importer sets, to compute what a seed computed."""
    return dataclasses.field(default=default)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of each feed-forward layer.

    A router sends each token to `top_k` of `n` experts of width `d_ff`, and weighs their results by
    its probabilities, which are rescaled to add up to 1. No token is dropped. In addition, every
    token goes through `shared` experts of width `d_shared`.
    """

    n: int = setting("routed experts in a layer")
    top_k: int = setting("routed experts that a token uses", 2)
    shared: int = setting("experts that every token uses", 1)
    d_shared: int = setting("width of one shared expert", 0)
    balance_weight: float = setting("weight of the loss that spreads tokens over experts", 0.01)
    z_weight: float = setting("weight of the loss that keeps the router's logits small", 0.001)
    # What the balance is computed over. The seed's is "batch", which depends on how a batch is cut.
    balance: Literal["row", "batch"] = imported("row")

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


# By the name of the field in ModelConfig.
PARTS = {"experts": Experts}
