"""Errors as plain JSON and back, for the pipes between processes. Class and fields are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.errors import (
    BadInput,
    Fenced,
    Interrupted,
    NotDurable,
    PionError,
    PlanFailed,
    Stopped,
    Trouble,
)
from pipeline.state.stores import Conflict, Missing, StoreError

# The classes that cross a pipe, each with the attributes that its constructor takes. A class
# without attributes is built from its text. A subclass that is not listed arrives as its nearest
# listed base class.
_FIELDS: Mapping[type[PionError], tuple[str, ...]] = {
    PionError: (),
    BadInput: (),
    Fenced: (),
    Stopped: (),
    NotDurable: (),
    Interrupted: (),
    Trouble: ("step", "rows", "what"),
    PlanFailed: ("plan", "why"),
    Missing: ("key", "url"),
    Conflict: ("key", "url"),
    StoreError: ("action", "where", "reason", "outage"),
}
_BY_NAME = {kind.__name__: kind for kind in _FIELDS}


def error_to_json(error: PionError) -> dict[str, Any]:
    """Return what `error_from_json` needs to build an equal error, as plain JSON."""
    kind = next(kind for kind in type(error).__mro__ if kind in _FIELDS)
    names = _FIELDS[kind]
    fields = {name: getattr(error, name) for name in names} if names else {"text": str(error)}
    return {"class": kind.__name__, "fields": fields}


def error_from_json(raw: Mapping[str, Any]) -> PionError:
    """Return the error that `error_to_json` described: the same class, text and exit code."""
    kind, fields = _BY_NAME[raw["class"]], raw["fields"]
    return kind(**fields) if _FIELDS[kind] else kind(fields["text"])
