"""Read and write JSON records. Reading checks the format version and the fields."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pion.errors import BadInput

FORMAT = 1

Record = TypeVar("Record")


class Damaged(BadInput):
    """A record can't be read, for a reason other than a newer pion."""


def to_json(value: Any) -> str:
    """Return readable JSON. Equal values give equal texts."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Return a record's JSON object. Raises `Damaged`, or `BadInput` for another format version."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise Damaged(
            f"{where} is damaged: it is not valid JSON ({error}). Nothing was changed."
        ) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise Damaged(f"{where} is damaged: it has no format version. Nothing was changed.")
    if raw["format"] != FORMAT:
        raise BadInput(
            f"{where} has format version {raw['format']}, but this pion reads version {FORMAT}. "
            "Nothing was changed. Use the pion that wrote this file, or update this pion."
        )
    return raw


def build(kind: type[Record], raw: Mapping[str, Any], where: str) -> Record:
    """Return one record from its JSON object. Raises `BadInput` for unknown fields, and `Damaged`
    for missing ones."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = sorted(set(raw) - {item.name for item in fields})
    if unknown:
        raise BadInput(
            f"{where} has {', '.join(unknown)} in {kind.__name__}, which this pion (format version "
            f"{FORMAT}) can't read. A newer pion wrote the file. Nothing was changed. Update pion."
        )
    try:
        return kind(**raw)
    except TypeError as error:
        raise Damaged(f"{where} is damaged: {error}. Nothing was changed.") from error
