"""Sections of the job file for the optional parts of a model, made from the parts themselves."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_type_hints

from pydantic import create_model

from pion.part_fields import MEANING
from pipeline.job.section import Section, identity


def section_of(part: type, **most: float) -> Any:
    """Return a section with the fields of a part (pion/parts.py) that a job can set.

    A field that is not given has the preset's value, or else the part's default. `most` has the
    largest number of each field.
    """
    hints = get_type_hints(part)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        if MEANING not in field.metadata:
            continue
        # Some meanings say themselves what the part does without the field.
        what, _, unset = field.metadata[MEANING].partition("; unset: ")
        if not unset and field.default is not dataclasses.MISSING:
            unset = "none" if field.default == () else str(field.default)
        meaning = f"{what}; unset: the preset's value" + (f", or else {unset}" if unset else "")
        fields[field.name] = (
            hints[field.name] | None,
            identity(None, meaning, most=most.get(field.name)),
        )
    doc = (inspect.getdoc(part) or "").partition("\n")[0]
    return create_model(part.__name__, __base__=Section, __doc__=doc, **fields)
