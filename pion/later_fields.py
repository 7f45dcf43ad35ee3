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
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pion.errors import BadInput

Settings = TypeVar("Settings")

BEFORE = "before"
# A message shows at most this many characters of a value that others wrote.
SHOWN_CHARS = 100


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


def from_fields(kind: type[Settings], fields: Mapping[str, Any], prefix: str = "") -> Settings:
    """Return the settings with these fields, and defaults for all others.

    Raises BadInput for an unknown or a missing field; `prefix` is put before its name.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise BadInput(f"unknown model field {shown(prefix + name)}{closest(name, known)}")
    missing = [
        prefix + name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and name not in fields
    ]
    if missing:
        raise BadInput(f"the model's settings are missing {', '.join(missing)}")
    return kind(**fields)


def shown(value: object) -> str:
    """Return a value as a message shows it: as Python writes it, but at most a line of it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a whole number of thousands of digits"
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def closest(name: object, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest choice, or "" if none is near."""
    near = difflib.get_close_matches(str(name)[:SHOWN_CHARS], list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def to_record(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without later fields that have their `before` value.

    A field that is a dataclass becomes its record, and a tuple becomes a list, as in JSON.
    """
    before = values_before(type(settings))
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {
        name: to_record(value) if dataclasses.is_dataclass(value) else _plain(value)
        for name, value in values.items()
        if name not in before or value != before[name]
    }


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
