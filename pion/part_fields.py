"""How the fields of a model's parts (parts.py) are declared and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pion.errors import BadInput
from pion.later_fields import BEFORE, shown

MEANING = "meaning"
# The largest whole number that JSON carries exactly, and the largest number that is sure to fit
# fp32.
LARGEST_WHOLE, LARGEST_NUMBER = 2**53, 1e30
# Matrix products are fast, and grouped ones possible, if rows of bf16 are a multiple of this many
# bytes.
ROW_BYTES = 16


def setting(meaning: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of a part that a job can set; `meaning` is for the job's reference."""
    return dataclasses.field(default=default, metadata={MEANING: meaning})


def later_setting(meaning: str, default: Any, *, before: Any) -> Any:
    """Declare a field that a part gained after runs had recorded it; see later_fields.py."""
    return dataclasses.field(default=default, metadata={MEANING: meaning, BEFORE: before})


def imported(default: Any) -> Any:
    """Declare a field of a part that only an importer sets, to compute what a seed computed."""
    return dataclasses.field(default=default)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number that any setting could have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE


def is_number(value: object, above: float = -LARGEST_NUMBER) -> bool:
    """Return whether a value is a number above `above` that any setting could have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and above < value <= LARGEST_NUMBER  # type: ignore[operator]


def require_whole(name: str, value: Any, least: int) -> None:
    if not is_whole(value) or value < least:
        raise BadInput(f"{name} is {shown(value)}; it must be a whole number of at least {least}")


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise BadInput(f"{name} is {shown(value)}; it must be true or false")


def require_list(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadInput(f"{name} is {shown(value)}; it must be a list")
    return value


def layer_numbers(name: str, value: object) -> tuple[int, ...]:
    """Return layer numbers as a tuple: a record has a list."""
    layers = require_list(name, value)
    for layer in layers:
        require_whole(name, layer, least=0)
    return tuple(layers)
