"""What is wrong with a job: the line, the dotted path, the value, and how to fix it."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.console.formats import counted
from pipeline.job import Job, Price, Section
from pipeline.job.every_field import fields_at, find_field, homes_of, is_number
from pipeline.job.model_section import Base
from pipeline.job.names_of_others import in_pion, instead_of_value
from pipeline.job.section import join, most_of
from pipeline.job.stages import TRAINING

# The most mistakes that are explained and listed.
MOST_MISTAKES = 50
# From this likeness on, a key is taken for a misspelled one: two letters swapped in `name`.
_LIKE = 0.75


@dataclass
class Document:
    """A parsed job file: its values, and the line of each dotted path."""

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)

    def where(self, path: str) -> str:
        """Return `line 12` or `command line`; for a missing key, the place of its section."""
        while True:
            if path in self.overridden:
                return "command line"
            if path in self.lines:
                return f"line {self.lines[path]}"
            if any(given.startswith(f"{path}.") for given in self.overridden):
                return "command line"
            if not path:
                return ""
            path = path.rpartition(".")[0]


@dataclass(frozen=True)
class Mistake:
    where: str
    path: str
    text: str

    @property
    def order(self) -> tuple[int, str]:
        line = self.where.removeprefix("line ")
        return (int(line) if line.isdecimal() else 1_000_000_000, self.path)


def mistakes_in(document: Document, error: ValidationError | None) -> list[Mistake]:
    """Return every mistake of a job. `error` is what validation raised."""
    mistakes = _truths_for_numbers(document)
    for number, details in enumerate(error.errors() if error else ()):
        if number < MOST_MISTAKES:
            mistakes += _reported(details, document)
        else:
            path = _path_of(details["loc"], document.values)
            mistakes.append(Mistake(document.where(path), path, details["msg"]))
    return list(dict.fromkeys(mistakes))


def in_misspelled_sections(
    document: Document, error: ValidationError, base: Base | None
) -> list[Mistake]:
    """Return the mistakes inside sections whose names are misspelled, read as what was meant.

    `error` is what validation raised, and `base` the model that the job starts from.
    """
    read = copy.deepcopy(document)
    meant = []
    for details in error.errors():
        path = _path_of(details["loc"], document.values)
        parent, _, key = path.rpartition(".")
        of_others = in_pion(path, None, document.values)
        name = None if of_others else _near(key, fields_at(parent, document.values))
        here: Any = read.values
        for part in filter(None, parent.split(".")):
            here = here.get(part) if isinstance(here, dict) else None
        is_section = details["type"] == "extra_forbidden" and isinstance(details["input"], dict)
        if is_section and name and isinstance(here, dict) and name not in here:
            here[name] = here.pop(key)
            meant.append(join(parent, name))
            inner = re.compile(re.escape(path) + r"(\.|$)")
            renamed = {
                given: meant[-1] + given.removeprefix(path)
                for given in filter(inner.match, {*read.lines, *read.overridden})
            }
            read.lines |= {renamed[p]: n for p, n in read.lines.items() if p in renamed}
            read.overridden |= {renamed[p] for p in read.overridden if p in renamed}
    if not meant:
        return []
    try:
        Job.model_validate(read.values, context={"base": base})
        return []
    except ValidationError as found:
        inside = tuple(f"{path}." for path in meant)
        return [m for m in mistakes_in(read, found) if m.path.startswith(inside)]


def beyond_limits(job: Job, document: Document) -> list[Mistake]:
    """Return a mistake for each number of the job that exceeds its field's `most`."""
    mistakes = []
    for path, number, most in _limited(job, ""):
        if abs(number) > most:
            limit = f"at most {most:,}" if number > 0 else f"at least {-most:,}"
            mistakes.append(
                Mistake(document.where(path), path, f"{shown(number)} should be {limit}")
            )
    return mistakes


def _limited(section: Section, path: str) -> Iterator[tuple[str, float, float]]:
    """Yield each number in a section that has a largest one, with its path and the largest one."""
    for name, about in type(section).model_fields.items():
        most = most_of(about)
        for place, value in _leaves(getattr(section, name), join(path, name)):
            if isinstance(value, Section):
                yield from _limited(value, place)
            elif most is not None and isinstance(value, int | float):
                yield place, value, most


def listing(path: Path, mistakes: list[Mistake]) -> str:
    """Return the message for a job file with mistakes, in the order of the file."""
    count = counted(len(mistakes), "mistake")
    listed = sorted(mistakes, key=lambda mistake: mistake.order)[:MOST_MISTAKES]
    width = max(len(m.where) for m in listed)
    rows = [
        f"  {m.where:<{width}}  {m.path:.200}: {m.text}"
        if m.path
        else f"  {m.where:<{width}}  {m.text}"
        for m in listed
    ]
    if len(mistakes) > len(listed):
        rows.append(f"  and {len(mistakes) - len(listed):,} more")
    return "\n".join(
        [f"{path} has {count}; nothing was started", *rows, "(pion run --help-job: every field)"]
    )


EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text (in quotes if it looks like a number)",
    "bool": "true or false",
    "list": "a list",
    "model": "a section of `key: value` lines",
    "dict": "a section of `key: value` lines",
}


# Keys and values that a job had once, and what replaces each.
GONE = {
    "evaluate.overlap": "name the sets in data.clean.decontaminate, which leaves documents with "
    "their questions out of the training text, and reports how many there were",
    "evaluate.instructions": "name the task ifeval in evaluate.lm_eval.tasks, which asks "
    "instructions whose answers code can check",
    "evaluate.ladder": "leave it out. Pion predicts no loss any more (`pion help halving`)",
    **{
        f"{stage}.init_from": "write `model: {from: …}` in place of the sections model and "
        "tokenizer. The model that the run starts from brings both"
        for stage in TRAINING
    },
    "prefer.loss=kto": "use apo-zero, which learns from single answers with labels, too",
}


def _reported(error: Any, document: Document) -> list[Mistake]:
    """Return one pydantic error in the words of the job file.

    Our own validators report several mistakes in one error, one per line.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    path = _path_of(error["loc"], document.values)
    if kind == "value_error":
        return [_stated(path, line, value, document) for line in str(context["error"]).split("\n")]
    if kind == "extra_forbidden":
        text = f"unknown key (value {shown(value)}); {_meant_key(path, value, document.values)}"
    elif kind == "missing":
        found = find_field(path, document.values)
        text = f"missing: {found.description}" if found and found.description else "missing"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        path = join(path, "kind")
        given = value.get("kind") if isinstance(value, dict) else None
        kinds = [f.strip("' ") for f in context.get("expected_tags", "").split(",") if f]
        kinds = kinds or fields_at(path.rpartition(".")[0], document.values, kinds=True)
        text = "missing" if given is None else _not_one_of("kind", given, kinds)
        text += f" (the kinds are {', '.join(kinds)})"
    elif error["loc"][-1] != "[key]" and not path.endswith(str(error["loc"][-1])):
        # There is an error for each type that the value may have.
        field = find_field(path, document.values)
        field = field or find_field(path.rpartition(".")[0], document.values)
        text = f"{shown(value)} should be {field.description if field else 'something else'}"
    elif kind == "literal_error":
        # Texts are in quotes, and true and false as in Python.
        words = re.findall(r"'([^']*)'|\b(True|False)\b", context["expected"])
        choices = [text or flag.lower() for text, flag in words]
        text = f"{_wrong_value(path, value, choices)} (expected {', '.join(choices)})"
    elif kind == "invalid_key":
        text = f"the key {shown(value)} is not text"
    elif kind == "string_pattern_mismatch":
        text = _no_name(value, context["pattern"])
    else:
        expected = (
            EXPECTED.get(kind.split("_")[0])
            if kind.endswith(("_type", "_parsing", "_from_float"))
            else None
        )
        text = f"should be {expected}" if expected else error["msg"]
        text = f"{shown(value)} {text.replace('Input should', 'should', 1)}"
    return [Mistake(document.where(path), path, text)]


def _no_name(value: str, pattern: str) -> str:
    better = re.sub(r"[^A-Za-z0-9_.+=@-]+", "-", value).strip("-")
    instead = f". Such as {better}" if re.match(pattern, better) else ""
    return f"{shown(value)} has other characters than letters, digits and _.+=@-{instead}"


def _truths_for_numbers(document: Document) -> list[Mistake]:
    """Return mistakes like `steps: yes`: Python, and so pydantic, accepts True as 1."""
    return [
        Mistake(document.where(path), path, f"{str(value).lower()} should be a number")
        for path, value in _leaves(document.values, "")
        if isinstance(value, bool) and is_number(find_field(path, document.values))
    ]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield what is inside mappings, lists and records, each with its path. Sections stay whole."""
    if isinstance(value, Price):
        value = vars(value)
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, join(path, str(key)))
    else:
        yield path, value


def _stated(path: str, line: str, value: Any, document: Document) -> Mistake:
    """Return the mistake in a validator's own sentence. It may begin with a dotted path."""
    named, colon, rest = line.partition(": ")
    if colon and re.fullmatch(r"[a-z_0-9.]+", named):
        path, line = (join(path, named) if path else named), rest
    elif not isinstance(value, dict | list) and not isinstance(value, Job):
        line = f"{shown(value)}: {line}" if repr(value) not in line else line
    return Mistake(document.where(path), path, line)


def _path_of(loc: tuple[int | str, ...], values: Any) -> str:
    """Return the dotted path of a location, without the `kind` that pydantic inserts after the
    number of a source, and without the type that it adds to a value which may have several."""
    path, here = "", values
    for before, part in zip((None, *loc), loc):
        deeper, in_list = join(path, str(part)), isinstance(here, list) and isinstance(part, int)
        is_kind = isinstance(before, int) and isinstance(here, dict) and part == here.get("kind")
        there = in_list or (isinstance(here, dict) and part in here)
        if not is_kind and (there or find_field(deeper, values) is not None):
            path, here = deeper, here[part] if there else None
    return path


def _wrong_value(path: str, value: Any, choices: list[str]) -> str:
    if instead := GONE.get(f"{path}={value}"):
        return f"the value {shown(value)} is gone: {instead}"
    if instead := instead_of_value(path.rpartition(".")[2], value):
        return f"unknown value {shown(value)}; {instead}"
    return _not_one_of("value", value, choices)


def _meant_key(path: str, value: object, values: dict[str, Any]) -> str:
    if gone := GONE.get(path):
        return f"this key is gone: {gone}"
    if instead := in_pion(path, value, values):
        return instead
    section, _, key = path.rpartition(".")
    key = key[:100]
    valid = fields_at(section, values)
    homes = homes_of(key)
    if close := _near(key, valid, 0.8 if homes else _LIKE):
        return f"did you mean `{join(section, close)}`?"
    if homes:
        return f"`{key}` belongs in " + " or ".join(f"`{home}`" for home in homes)
    return f"the keys of this section are {', '.join(valid)}"


def _near(key: str, valid: list[str], least: float = _LIKE) -> str | None:
    """Return the valid key that a misspelled one is likely to mean, with at least this likeness."""
    return next(iter(difflib.get_close_matches(key[:100], valid, 1, least)), None)


def _not_one_of(what: str, given: Any, valid: list[str]) -> str:
    close = difflib.get_close_matches(str(given), valid, 1, 0.4)
    return f"unknown {what} {shown(given)}" + (f"; did you mean {close[0]}?" if close else "")


def shown(value: Any) -> str:
    """Return a value as an error message shows it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
