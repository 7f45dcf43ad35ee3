"""Check the objects of a request, and say in words which field is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pion.errors import BadInput
from pion.generation.bounds import check
from pion.later_fields import closest, shown
from pipeline.serve.errors import ApiError

Body = TypeVar("Body", bound=BaseModel)

# A name in a message may come from the client.
_LONGEST_NAME = 80


class Fields(BaseModel):
    """An object of a request. Fields that this server does not have are refused by name.

    The first mistake ends the check: a body of a million mistakes would stop the server for a
    minute.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    # Fields that never change an answer.
    without_effect: ClassVar[frozenset[str]] = frozenset()
    # Of these fields, only null and the values that ask for nothing are accepted.
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON object is needed here, not {shown(fields)}")
        kept = {}
        for name, value in fields.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in cls.asks_nothing:
                if value is not None and value not in cls.asks_nothing[name]:
                    raise refused(name, f"this server has no {name}; leave the field out")
            elif name not in cls.without_effect:
                hint = closest(name, cls.model_fields)
                raise refused(name, f"this server has no field {shown(name)}{hint}")
        return kept


def refused(name: str, words: str) -> PydanticCustomError:
    """Return the error for a field of an object, to be raised in a validator of this object."""
    return PydanticCustomError("refused", "{words}", {"words": words, "name": name})


def within(name: str) -> AfterValidator:
    """Return the check that a number is within its bounds."""

    def checked(value: float) -> float:
        try:
            check(name, value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(checked)


def checked(kind: type[Body], fields: Any) -> Body:
    """Return the body of a request. Raises ApiError that names the first wrong field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first(error) from None


def _first(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    kind, words, context = first["type"], first["msg"], first.get("ctx", {})
    path = [str(part)[:_LONGEST_NAME] for part in first["loc"]]
    place = ".".join(path)
    if kind == "refused":
        words = f"{place}: {words}" if place else words
        path.append(context["name"][:_LONGEST_NAME])
    elif kind == "value_error":  # ours: of a field, it begins with the field's name
        words = str(context["error"])
        words = f"{place}: {words}" if len(path) > 1 else words
    elif kind == "missing":
        words = f"{place} is missing"
    elif words.startswith("Input should "):
        words = f"{place} {words.removeprefix('Input ')}, not {shown(first['input'])}"
    else:
        words = f"{place}: {words}"
    return ApiError(400, words, param=".".join(path) or None)
