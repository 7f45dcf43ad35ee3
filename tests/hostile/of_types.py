"""Documents of the type of a record: one with every field, and whether a document is one."""

import dataclasses
import functools
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from annotated_types import Ge, Le, Len, Lt, Predicate
from typing_extensions import get_type_hints, is_typeddict

SHA256 = "e" * 64


def example(kind: Any, count: int, name: str = "") -> Any:
    """Return a value of a record's type, with everything that may be there, and this count."""
    if is_typeddict(kind):
        return {name: example(own, count, name) for name, own in types_of(kind).items()}
    kinds, outer = [part for part in get_args(kind) if part is not NoneType], get_origin(kind)
    if outer is Literal:
        return kinds[0]
    if outer is Mapping:
        return {"1": example(kinds[1], count)}
    if outer is list:
        return [example(kinds[0], count)]
    if outer is Annotated and kinds[0] is str:
        return SHA256
    if outer in (Annotated, Required, NotRequired, UnionType) or kinds:
        return example(kinds[0], count, name)
    error = 0.01 if name.endswith("_sem") else 0.5  # so that differences are more than chance
    return {int: count, str: "text", bool: True}.get(kind, error)


def fits(kind: Any, value: Any) -> bool:
    """Return whether JSON is of a record's type. Keys that the type does not have are ignored."""
    kinds, outer = get_args(kind), get_origin(kind)
    if kind is Any:
        return True
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        types = types_of(kind)
        return (
            isinstance(value, dict)
            and value.keys() >= needed(kind)
            and all(fits(types[name], value[name]) for name in value if name in types)
        )
    if outer in (UnionType, Union):
        return any(fits(part, value) for part in kinds)
    if outer is Literal:
        return value in kinds
    if outer is Annotated:
        return fits(kinds[0], value) and all(holds(rule, value) for rule in kinds[1:])
    if outer in (Required, NotRequired):
        return fits(kinds[0], value)
    if outer in (list, tuple):
        return isinstance(value, list) and all(fits(kinds[0], item) for item in value)
    if outer is not None:  # a mapping
        return isinstance(value, dict) and all(fits(kinds[1], item) for item in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


@functools.cache
def types_of(kind: Any) -> Mapping[str, Any]:
    """Return the types of a record's fields."""
    return get_type_hints(kind, include_extras=True)


@functools.cache
def needed(kind: Any) -> frozenset[str]:
    """Return the fields that a record must have."""
    if is_typeddict(kind):
        return frozenset(kind.__required_keys__)
    without = (dataclasses.MISSING, dataclasses.MISSING)
    fields = dataclasses.fields(kind)
    return frozenset(f.name for f in fields if (f.default, f.default_factory) == without)


def holds(rule: Any, value: Any) -> bool:
    """Return whether a value keeps to a bound or a predicate of its type."""
    match rule:
        case Ge():
            return bool(value >= rule.ge)
        case Le():
            return bool(value <= rule.le)
        case Lt():
            return bool(value < rule.lt)
        case Len():
            return rule.min_length <= len(value) <= (rule.max_length or len(value))
        case Predicate():
            return bool(rule.func(value))
    raise AssertionError(f"an unknown rule: {rule}")
