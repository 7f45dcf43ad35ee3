"""Read and write JSON records. Reading checks the format version, the fields and their types.

A store may hold what others wrote. So a record with a wrong type, a time out of range or a negative
count is damaged, and the message names the file and the place in it.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

# Not from pydantic: importing pydantic takes 0.1 s, and most processes that import records read
# none.
from annotated_types import Ge, Le, Lt, Predicate
from typing_extensions import TypedDict

from pion.errors import BadInput
from pion.files import is_sha256
from pion.untrusted import parse_object

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails, SchemaValidator

FORMAT = 1
# The last commit that can continue what the commits before 0.1.0 wrote.
BEFORE_0_1_0 = "5a12c685"
# The most epochs of a run. A claim takes seconds, so these are years of nothing but claims.
EPOCHS = 10**6
# 10000-01-01 00:00 UTC, the first time without a date.
END_OF_TIME = 253_402_300_800

# The most values of a record; commas and brackets in its texts count too. A run that was restarted
# ten thousand times has fewer. Of each wrong value, a message is made before the first is shown:
# millions would take a minute and gigabytes.
MOST_VALUES = 50_000


# The types of values in records. NaN and infinite numbers never reach them.
Time = Annotated[float, Ge(0), Lt(END_OF_TIME)]  # Unix seconds
Count = Annotated[int, Ge(0), Lt(2**63)]
Epoch = Annotated[int, Ge(0), Le(EPOCHS)]
Amount = Annotated[float, Ge(0), Lt(1e12)]  # hours, dollars
Sha256 = Annotated[str, Predicate(is_sha256)]
# A loss or a rate. None: it is not known, or it was not finite.
Number = float | None

Record = TypeVar("Record")


def closed_record(kind: type[Record]) -> type[Record]:
    """Let `build` refuse keys that the dataclass `kind` does not have."""
    kind.__pydantic_config__ = {"strict": True, "extra": "forbid"}  # type: ignore[attr-defined]
    return kind


def record_type(
    more: Mapping[str, Any] | None = None, /, *, total: bool = True, **fields: Any
) -> Any:
    """Return the type of a record with these fields, which are all there if it is `total`."""
    return TypedDict("Record", {**(more or {}), **fields}, total=total)  # type: ignore[operator]


def open_record(kind: type[Record]) -> type[Record]:
    """Let `build` keep keys that the TypedDict `kind` does not have, or ignore them if it is a
    dataclass."""
    kind.__pydantic_config__ = {  # type: ignore[attr-defined]
        "strict": True,
        "extra": "ignore" if dataclasses.is_dataclass(kind) else "allow",
    }
    return kind


class Damaged(BadInput):
    """A record can't be read, for a reason other than a newer pion."""


def damaged(where: str, why: str) -> Damaged:
    """Return the error for the file `where`. `why` is a clause about this file."""
    return Damaged(f"{where} is damaged: {why}. Nothing was changed.")


def to_json(value: Any) -> str:
    """Return readable JSON. Equal values give equal texts."""
    return finite_json(value, indent=1, sort_keys=True) + "\n"


def finite_json(value: Any, **options: Any) -> str:
    """Return `value` as `json.dumps` does, but with null for NaN and infinite numbers, which are
    not JSON."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False, **options)


def count_values(data: bytes) -> int:
    """Return about how many values a JSON text has, as `parse_record` counts them."""
    return sum(map(data.count, (b",", b"[", b"{")))


def parse_record(data: bytes, where: str, most: int = MOST_VALUES) -> dict[str, Any]:
    """Return the JSON object in `data`, of at most `most` values. Raises `Damaged`."""
    if count_values(data) > most:
        raise damaged(where, f"it has more than {most:,} values")
    try:
        return parse_object(data, "it")
    except BadInput as error:
        raise damaged(where, str(error)) from None


def parse(
    data: bytes, where: str, formats: tuple[int, ...] = (FORMAT,), *, most: int = MOST_VALUES
) -> dict[str, Any]:
    """Return a record's JSON object, of at most `most` values. Raises `Damaged`, or `BadInput` if
    its format version is not one of `formats`."""
    raw = parse_record(data, where, most)
    version = raw.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise damaged(where, "it has no format version")
    if 0 < version < min(formats):
        raise BadInput(
            f"{where} was written by a commit before Pion 0.1.0, and only such a commit can "
            f"continue it: git checkout {BEFORE_0_1_0}. Nothing was changed. To begin anew, use "
            "another store."
        )
    if version not in formats:
        raise BadInput(
            f"{where} has format version {version}, but this pion reads version "
            f"{' and '.join(map(str, formats))}. Nothing was changed. Use the pion that wrote this "
            "file, or update this pion."
        )
    return raw


def build(kind: type[Record], raw: Mapping[str, Any], where: str, under: str = "") -> Record:
    """Return the record of the dataclass or TypedDict `kind` in a JSON object.

    Raises `BadInput` for unknown fields, and `Damaged` for missing fields and wrong values. The
    message names the file `where`, in which the object is at the dotted place `under`.
    """
    from pydantic import ValidationError

    try:
        # From JSON, and only from JSON, strict types accept objects and lists.
        record: Record = _validator(kind).validate_json(finite_json(raw))  # type: ignore[arg-type]
        return record
    except BadInput as error:  # by a dataclass that refuses what does not fit together
        raise damaged(where, str(error)) from None
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    unknown = [e["loc"] for e in errors if e["type"] == "unexpected_keyword_argument"]
    if unknown:
        *outer, name = unknown[0]
        raise BadInput(
            f"{where} has {name} in {_place(outer) or kind.__name__}, which this pion can't "
            "read. A newer pion wrote the file. Nothing was changed. Update pion."
        )
    raise damaged(where, _in_words(errors[0], under))


@functools.cache
def _validator(kind: Any) -> "SchemaValidator":
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    schema = TypeAdapter(kind).core_schema
    _end_lists_early(schema)
    return SchemaValidator(schema)


def _end_lists_early(schema: Any) -> None:
    """Let the first wrong item end the check of a list: each item may have many mistakes."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "tuple"):
            schema["fail_fast"] = True
        schema = schema.values()
    if not isinstance(schema, str):
        for part in schema if isinstance(schema, Iterable) else ():
            _end_lists_early(part)


def _in_words(error: "ErrorDetails", under: str) -> str:
    """Return a clause about a wrong value: `claims.0.at should be a valid number`."""
    path, message = _place([*filter(None, [under]), *error["loc"]]) or "it", error["msg"]
    match error["type"]:
        case "missing":
            return f"{path} is missing"
        case "predicate_failed":
            return f"{path} is not a possible value"
        case _ if message.startswith("Input should "):
            return f"{path} {message.removeprefix('Input ')}"
    return f"{path}: {message}"


def _place(path: Sequence[str | int]) -> str:
    """Return `claims.0.at`. A key from the file may be of any length."""
    return ".".join(str(part)[:80] for part in path)


def _without_nan(value: Any) -> Any:
    """Return plain JSON with None for NaN and infinite numbers."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _without_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
    return value
