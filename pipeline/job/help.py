"""What a job may contain: look-ups of sections and keys, and the table of every field."""

from __future__ import annotations

import io
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.job import Job, Section
from pipeline.job.section import part_of


@dataclass(frozen=True)
class JobField:
    """One key of a job file, as `pion run --help-job` prints it."""

    path: str
    type: str
    default: str
    meaning: str
    part: str


def fields_at(path: str, values: Any, *, kinds: bool = False) -> list[str]:
    """The valid keys of the section at a dotted path (`kinds`: the kinds a source can have).

    `values` is the job as parsed; it tells which kind of source stands at a list index.
    """
    sections = _sections_at(path, values)
    if kinds:
        return [kind for section in sections if (kind := _kind(section))]
    return list(dict.fromkeys(key for section in sections for key in section.model_fields))


def find_field(path: str, values: Any) -> FieldInfo | None:
    """The field at a dotted path, or None where the job has no such key."""
    section, _, key = path.rpartition(".")
    for candidate in _sections_at(section, values):
        if key in candidate.model_fields:
            return candidate.model_fields[key]
    return None


def is_number(field: FieldInfo | None) -> bool:
    """Whether a field holds a number, and so no `true` or `false`."""
    if field is None:
        return False
    return bool({int, float} & {field.annotation, *get_args(field.annotation)})


def homes_of(key: str) -> list[str]:
    """The dotted paths of all fields with this name, wherever they stand in a job."""
    return sorted({f.path for _, fields in _walk() for f in fields if f.path.endswith("." + key)})


def _sections_at(path: str, values: Any) -> list[type[Section]]:
    sections: list[type[Section]] = [Job]
    for part in path.split(".") if path else []:
        if isinstance(values, list):
            values = values[int(part)] if part.isdecimal() and int(part) < len(values) else None
            kind = values.get("kind") if isinstance(values, dict) else None
            sections = [s for s in sections if _kind(s) == kind] or sections
        else:
            values = values.get(part) if isinstance(values, dict) else None
            found = [s.model_fields[part] for s in sections if part in s.model_fields]
            sections = [inner for f in found for inner in _sections_of(f.annotation)]
    return sections


def _sections_of(annotation: Any) -> list[type[Section]]:
    """The section classes inside `X | None`, `list[…]`, `Annotated[…]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_of(inner)]


def _kind(section: type[Section]) -> str | None:
    field = section.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else None


# ---------------------------------------------------------------- --help-job


def help_job(width: int | None = None) -> str:
    """Every field of a job: a table `width` columns wide, or without it one plain line a field."""
    if width is None:
        return "\n".join(
            f"\n# {title}\n"
            + "\n".join(f"{f.path}  ({f.type}; {f.default}; {f.part})  {f.meaning}" for f in fields)
            for title, fields in _walk()
        ).strip()

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    for title, fields in _walk():
        table = Table(title=title, title_justify="left", box=None, expand=True, pad_edge=False)
        for name, ratio in (("key", 5), ("type", 3), ("default", 3), ("meaning", 7), ("part", 2)):
            table.add_column(name, ratio=ratio, overflow="fold", header_style="dim")
        for f in fields:
            cells = [Text(cell) for cell in (f.path, f.type, f.default, f.meaning, f.part)]
            cells[0].stylize("bold")
            table.add_row(*cells)
        console.print(table)
        console.print()
    return console.export_text(styles=True).rstrip()


def _walk() -> Iterator[tuple[str, list[JobField]]]:
    """Sections in the order of the job file: a title, and the fields under it."""
    top = {n: f for n, f in Job.model_fields.items() if not _sections_of(f.annotation)}
    yield "job — one run, in one YAML file", [_described(n, f) for n, f in top.items()]
    for name, field in Job.model_fields.items():
        if name not in top:
            yield from _walk_section(name, field)


def _walk_section(path: str, field: FieldInfo) -> Iterator[tuple[str, list[JobField]]]:
    (section,) = _sections_of(field.annotation)
    fields: list[JobField] = []
    kinds: list[tuple[str, list[JobField]]] = []
    for name, inner in section.model_fields.items():
        sections = _sections_of(inner.annotation)
        if len(sections) > 1:  # a list of sources, told apart by `kind`
            fields.append(_described(f"{path}.{name}", inner))
            kinds += [_kind_of_source(f"{path}.{name}", s) for s in sections]
        elif sections:
            fields += [
                _described(f"{path}.{name}.{n}", f) for n, f in sections[0].model_fields.items()
            ]
        else:
            fields.append(_described(f"{path}.{name}", inner))
    presence = "optional section" if field.default is None else "section"
    if field.is_required():
        presence = "required section"
    yield f"{path} — {field.description} ({presence})", fields
    yield from kinds


def _kind_of_source(path: str, section: type[Section]) -> tuple[str, list[JobField]]:
    meaning = (section.__doc__ or "").strip().rstrip(".")
    return f"{path}: kind {_kind(section)} — {meaning}", [
        _described(f"{path}.N.{name}", field)
        for name, field in section.model_fields.items()
        if name != "kind"
    ]


def _described(path: str, field: FieldInfo) -> JobField:
    if field.is_required():
        default = "required"
    elif field.default is None or field.default is PydanticUndefined:
        default = "none"
    elif field.default == []:
        default = "empty"
    else:
        default = _value_in_words(field.default)
    return JobField(
        path, _type_in_words(field.annotation), default, field.description or "", part_of(field)
    )


def _value_in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type_in_words(annotation: Any) -> str:
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation in words:
        return words[annotation]
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_in_words(a) for a in inside if a is not type(None))
    if origin is list:
        return "list of sources" if _sections_of(annotation) else "list of texts"
    return "section"
