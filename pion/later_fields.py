"""Declare fields that a settings class gained after runs had recorded their settings.

A finished run, a checkpoint and an exported model must keep their meaning when the class gains a
field. So the field is declared together with the value that gives the behavior from before the
field existed:

    window: int | None = later_field(None, before=None)

If the field has that value, a record leaves the field out. A record without the field is read as
having that value, even if the default is different by then.
"""

from __future__ import annotations

import dataclasses
from typing import Any

BEFORE = "before"


def later_field(default: Any, *, before: Any) -> Any:
    """Declare a dataclass field; `before` gives the behavior from before the field existed."""
    return dataclasses.field(default=default, metadata={BEFORE: before})


def values_before(kind: type) -> dict[str, Any]:
    """Return the value of each later field of the dataclass `kind` where a record has none."""
    return {
        field.name: field.metadata[BEFORE]
        for field in dataclasses.fields(kind)
        if BEFORE in field.metadata
    }


def to_record(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without later fields that have their `before` value.

    A field that is a dataclass becomes its record.
    """
    before = values_before(type(settings))
    values = vars(settings)
    record = {}
    for name in (field.name for field in dataclasses.fields(settings)):
        value = values[name]
        if name not in before or value != before[name]:
            record[name] = to_record(value) if dataclasses.is_dataclass(value) else value
    return record
