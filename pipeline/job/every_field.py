"""What a job file may contain: its sections and fields in order, and the field at a path."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.job import Job, Price, Section
from pipeline.job.section import keys_of, part_of

# What a change of a field does to finished stages, by the field's part.
PARTS = {
    "identity": "changes the result, so the stages that use the field must run again. `pion run` "
    "shows the difference and asks for `--redo`",
    "schedule": "changes how the model is trained, so the stage must run again. There are two "
    "exceptions. A fork may continue with a different schedule. You may raise `steps` as long as "
    "the learning rate has not started to decay, unless windows, momentum or phases depend on "
    "`steps`",
    "runtime": "changes no result, so finished stages stay finished. With a different `name` or "
    "`store`, the job is a different run",
}


@dataclass(frozen=True)
class JobField:
    """One key of a job file, in words. `part` is a key of `PARTS`."""

    path: str
    type: str
    default: str
    meaning: str
    part: str


@dataclass(frozen=True)
class Chapter:
    """Fields that are explained together: a section of the job, or a kind of source.

    `path` is the path of the section or of the list of sources; "" is the top of the job.
    `presence` says whether the section must be given.
    """

    path: str
    kind: str | None
    meaning: str
    presence: str
    fields: list[JobField]

    @property
    def title(self) -> str:
        """Return the line above the fields."""
        kind = f": kind {self.kind}" if self.kind else ""
        presence = f" ({self.presence})" if self.presence else ""
        return f"{self.path or 'job'}{kind} — {self.meaning}{presence}"


# ---------------------------------------------------------------- everything, in order


def chapters() -> Iterator[Chapter]:
    """Yield the sections in the order of the job file, each with its kinds of sources."""
    top = {n: f for n, f in keys_of(Job).items() if not sections_of(f.annotation)}
    meaning = "the run: its name, its seed, its store and the prices of GPUs"
    yield Chapter("", None, meaning, "", [_described(n, field) for n, field in top.items()])
    for name, field in keys_of(Job).items():
        if name not in top:
            yield from _section_chapters(name, field)


def _section_chapters(path: str, field: FieldInfo) -> Iterator[Chapter]:
    (section,) = sections_of(field.annotation)
    fields: list[JobField] = []
    kinds: list[tuple[str, type[Section]]] = []
    for name, inner in keys_of(section).items():
        here = f"{path}.{name}"
        sections = sections_of(inner.annotation)
        if len(sections) == 1:
            fields += _fields(here, sections[0])
        else:  # one key, or a list of sources; `kind` tells them apart
            fields.append(_described(here, inner))
            kinds += [(here, source) for source in sections]
    unset = "optional section" if field.default is None else "section"
    presence = "required section" if field.is_required() else unset
    yield Chapter(path, None, field.description or "", presence, fields)
    for here, source in kinds:
        meaning = (source.__doc__ or "").strip().rstrip(".")
        yield Chapter(here, kind_of(source), meaning, "", _fields(f"{here}.N", source))


def _fields(path: str, section: type[Section]) -> list[JobField]:
    keys = keys_of(section).items()
    return [_described(f"{path}.{name}", field) for name, field in keys if name != "kind"]


def _described(path: str, field: FieldInfo) -> JobField:
    default = "unset" if field.default is None else _value_in_words(field.default) or "empty"
    if field.is_required():
        default = "required"
    what = _type_in_words(path, field.annotation), default, field.description or ""
    return JobField(path, *what, part_of(field))


def _value_in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# The types of fields that are neither choices nor sources.
_TYPES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    list[int]: "list of whole numbers",
    list[str]: "list of texts",
    tuple[int, ...]: "list of whole numbers",
    tuple[int, int]: "pair of whole numbers",
    tuple[tuple[int, int], ...]: "list of pairs of whole numbers",
    tuple[tuple[int, ...], ...]: "list of lists of whole numbers",
    dict[str, float]: "a number for each name",
    dict[str, float | str]: "a share or passes for each name",
    dict[str, bool | int | float | str]: "a value for each name",
    dict[str, Price]: "a price for each GPU",
}


def _type_in_words(path: str, annotation: Any) -> str:
    inside = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " | ".join(_value_in_words(choice) for choice in inside)
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type_in_words(path, a) for a in inside if a is not type(None))
    return f"list of {path.rpartition('.')[2]}" if sections_of(annotation) else _TYPES[annotation]


# ---------------------------------------------------------------- what is at a path


def fields_at(path: str, values: Any, *, kinds: bool = False) -> list[str]:
    """Return the valid keys of the section at a dotted path, or the kinds a source can have.

    `values` is the parsed job: it has the kind of the source at a list index.
    """
    sections = _sections_at(path, values)
    if kinds:
        return [kind for section in sections if (kind := kind_of(section))]
    return list(dict.fromkeys(key for section in sections for key in keys_of(section)))


def find_field(path: str, values: Any) -> FieldInfo | None:
    """Return the field at a dotted path, or None where the job has no such key."""
    section, _, key = path.rpartition(".")
    found = (keys_of(candidate).get(key) for candidate in _sections_at(section, values))
    return next(filter(None, found), None)


def is_number(field: FieldInfo | None) -> bool:
    """Return whether a field holds a number, so `true` and `false` are mistakes."""
    types_of = () if field is None else (field.annotation, *get_args(field.annotation))
    return int in types_of or float in types_of


def homes_of(key: str) -> list[str]:
    """Return the dotted paths of all fields of this name."""
    paths = {field.path for chapter in chapters() for field in chapter.fields}
    return sorted(path for path in paths if path.endswith(f".{key}"))


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the section classes inside `X | None`, `list[…]`, `Annotated[…]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in sections_of(inner)]


def kind_of(section: type[Section]) -> str | None:
    """Return the `kind` of a source; None for other sections."""
    field = section.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else None


def _sections_at(path: str, values: Any) -> list[type[Section]]:
    sections: list[type[Section]] = [Job]
    for part in path.split(".") if path else []:
        if isinstance(values, list):
            values = values[int(part)] if part.isdecimal() and int(part) < len(values) else None
            kind = values.get("kind") if isinstance(values, dict) else None
            sections = [s for s in sections if kind_of(s) == kind] or sections
        else:
            values = values.get(part) if isinstance(values, dict) else None
            found = [keys_of(s)[part] for s in sections if part in keys_of(s)]
            sections = [inner for f in found for inner in sections_of(f.annotation)]
    return sections
