"""How a section of the job file and its fields are declared.

A field is *identity* (it changes what is learned, or from what), *schedule* (it changes how) or
*runtime* (it changes neither: cadence, display, hardware). A stage's digest covers the first two
kinds; see digest.py.

A field that is added to an existing section must not make finished stages stale. Declare it with
`before`, the value with which everything is computed as before the field existed:

    z_loss: float = scheduled(0.0, "weight of the loss on the logits' scale", before=0.0)

While the field has that value, no digest covers it. A later change of its default moves digests.
tests/pipeline/job/test_digest_frozen.py fails then.

`most` is the largest number of a field. A larger number is a mistake, or meant to do harm. It is
refused when work is about to be claimed, and read in a job that a run recorded (mistakes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from pion.errors import BadInput

# `before` of a field that has existed since the first run.
ALWAYS_THERE: Any = object()


# The largest numbers that several fields share; a model's are in pion/config/part_fields.py. The
# longest time is three years.
STEPS = 10**9
BATCH = 10**6
ROWS = 10**8
SECONDS = 10**8
HOURS = 30_000
DOLLARS = 10**9
# The names of runs, of at most MOST_OF_A_NAME characters.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+=@-]*$"
MOST_OF_A_NAME = 100


def identity(default: Any, description: str, **about: Any) -> Any:
    """Declare a field that changes what is trained: model shape, data, tokenizer, seed, batch.

    `about` has `before`, `most` and pydantic's limits.
    """
    return _field("identity", default, description, **about)


def scheduled(default: Any, description: str, **about: Any) -> Any:
    """Declare a field that changes how it is trained: steps, learning rates, decay."""
    return _field("schedule", default, description, **about)


def runtime(default: Any, description: str, **about: Any) -> Any:
    """Declare a field that is in no digest: changing it never makes a finished stage stale."""
    return _field("runtime", default, description, **about)


def _field(part: str, default: Any, description: str, **given: Any) -> Any:
    about = {"part": part} | {key: given.pop(key) for key in ("before", "most") if key in given}
    return Field(default, description=description, json_schema_extra=about, **given)


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section by their keys in the job file."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def part_of(field: FieldInfo) -> str:
    """Return "identity", "schedule" or "runtime"; "" for a source's `kind`."""
    return str(_about(field).get("part", ""))


def value_before(field: FieldInfo) -> Any:
    """Return the value of this field in records without it, or ALWAYS_THERE."""
    return _about(field).get("before", ALWAYS_THERE)


def most_of(field: FieldInfo) -> float | None:
    """Return the largest number of this field; None if it holds none, or pydantic has the limit."""
    return _about(field).get("most")


def _about(field: FieldInfo) -> dict[str, Any]:
    about = field.json_schema_extra
    return about if isinstance(about, dict) else {}


def join(path: str, key: str) -> str:
    """Return the dotted path of `key` in the section at `path`."""
    return f"{path}.{key}" if path else key


class Section(BaseModel):
    """A mapping in the job file. Its keys are the class's fields."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        serialize_by_alias=True,
    )


T = TypeVar("T")


def made(mistakes: Mapping[str, object]) -> list[str]:
    """Return the mistakes that were made: `mistakes` has, for each, whether it was."""
    return [mistake for mistake, was_made in mistakes.items() if was_made]


def mistakes_of(check: Callable[..., object], *values: Any) -> list[str]:
    """Return the words of the BadInput that `check` raises for `values`, if it does."""
    try:
        check(*values)
    except BadInput as error:
        return [str(error)]
    return []


def refuse(value: T, mistakes: list[str]) -> T:
    """Return a section or a field's value, or raise all of its mistakes at once.

    A mistake is one line, `dotted.path: what is wrong`. A field's own needs no path.
    """
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return value
