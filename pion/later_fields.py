"""Declare fields that a settings class gained after runs had recorded their settings.

A run that is finished, a checkpoint and an exported model must stay what they are when the class
gains a field. So the field is declared together with the value that computes what was computed
before the field existed:

    window: int | None = later_field(None, before=None)

A record leaves the field out while it has that value, and a record without the field is read as if
it said that value, whatever the default may be by then.
"""

from __future__ import annotations

import dataclasses
from typing import Any

BEFORE = "before"


def later_field(default: Any, *, before: Any) -> Any:
    """Declare a dataclass field; `before` computes what was computed before the field existed."""
    return dataclasses.field(default=default, metadata={BEFORE: before})


def values_before(kind: type) -> dict[str, Any]:
    """Return what each later field of the dataclass `kind` means where a record leaves it out."""
    return {
        field.name: field.metadata[BEFORE]
        for field in dataclasses.fields(kind)
        if BEFORE in field.metadata
    }


def to_record(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without the later ones that have their value of before."""
    before = values_before(type(settings))
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in before or value != before[name]
    }
