"""The result of a bench: its rows, the JSON file that keeps them, and the numbers that are read.

The file may come from another machine, so reading it checks its size, fields and types. `pion plan`
reads the measured speeds of training.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pion.bench.card import Card
from pion.errors import BadInput
from pion.files import write_atomically
from pion.untrusted import parse_object, read_file

FORMAT = 1
# The most bytes, rows, measures of a row, and characters of a text in a file that is read.
LARGEST_FILE, MOST_ROWS, MOST_MEASURES, LONGEST_TEXT = 1 << 20, 1000, 50, 1000

Verdict = Literal["right", "wrong", "measured", "left out"]
# A measure that is None was not measured.
Measure = float | int | str | bool | None
Measures = dict[str, Measure]

TRAIN, SAVE = "train/", "save/"


@dataclass(frozen=True)
class Outcome:
    """What a check or a measurement found: a verdict, a clause for people, and numbers."""

    verdict: Verdict
    words: str
    measures: Measures = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """The outcome of one check or measurement. `seconds` is how long the row took."""

    name: str
    verdict: Verdict
    words: str
    measures: Measures
    seconds: float


@dataclass(frozen=True)
class Results:
    """The rows that were done on one card, and when the first of them began."""

    card: Card
    date: str  # UTC, ISO 8601
    tiny: bool
    rows: tuple[Row, ...] = ()


def judged(right: bool, words: str, **measures: Measure) -> Outcome:
    """Return the outcome of a check."""
    return Outcome("right" if right else "wrong", words, dict(measures))


def write_results(path: Path, results: Results) -> None:
    """Write the JSON whole or not at all. Raises BadInput if the file can't be written."""
    record = {"format": FORMAT, **dataclasses.asdict(results)}
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def read_results(path: Path) -> Results:
    """Return the results in a file. Raises BadInput that names the file."""
    where = str(path)
    try:
        data = read_file(path, LARGEST_FILE)
    except OSError as error:
        raise BadInput(f"{where} can't be read: {error.strerror or error}") from None
    raw = parse_object(data, where)
    if raw.pop("format", None) != FORMAT:
        raise BadInput(
            f"{where} is no result of `pion bench` of format {FORMAT}. It was not used. Measure "
            "the card again with this version of Pion"
        )
    rows = raw.pop("rows", None)
    if not isinstance(rows, list) or len(rows) > MOST_ROWS:
        raise _bad(where, "rows", "a list of rows")
    raw |= {"card": _record(Card, raw.pop("card", None), where, "card"), "rows": ()}
    results: Results = _record(Results, raw, where, "")
    try:
        datetime.fromisoformat(results.date)
    except ValueError:
        raise _bad(where, "date", "a date") from None
    checked = [_row(row, where, f"rows.{i}.") for i, row in enumerate(rows)]
    return dataclasses.replace(results, rows=tuple(checked))


def _row(raw: Any, where: str, under: str) -> Row:
    row: Row = _record(Row, raw, where, under)
    if len(row.measures) > MOST_MEASURES:
        raise _bad(where, f"{under}measures", f"at most {MOST_MEASURES} measures")
    for name, value in row.measures.items():
        _check(value, Measure, where, f"{under}measures.{name}")
    return row


def _record(kind: Any, raw: Any, where: str, under: str) -> Any:
    """Return the dataclass `kind` in a JSON object that has its fields and no others."""
    if not isinstance(raw, dict):
        raise _bad(where, under.rstrip("."), "an object")
    hints = get_type_hints(kind)
    for name in raw.keys() ^ hints.keys():
        problem = "is missing" if name in hints else "is unknown here"
        raise BadInput(f"{where} is no result of `pion bench`: {under}{name[:80]} {problem}")
    for name, value in raw.items():
        _check(value, hints[name], where, f"{under}{name}")
    return kind(**raw)


def _check(value: Any, kind: Any, where: str, name: str) -> None:
    """Raise BadInput unless the value is of the type, and no text or count is out of bounds."""
    name = name[:120]
    kinds = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _bad(where, name, f"one of {', '.join(get_args(kind))}")
    elif get_origin(kind) in (dict, tuple):
        if not isinstance(value, dict | tuple):
            raise _bad(where, name, "an object")
    elif isinstance(value, bool) and bool not in kinds:
        raise _bad(where, name, "no true or false")
    elif not isinstance(value, (*kinds, int) if float in kinds else kinds):
        raise _bad(where, name, " or ".join(getattr(k, "__name__", str(k)) for k in kinds))
    elif isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise _bad(where, name, f"at most {LONGEST_TEXT} characters")
    elif isinstance(value, int | float) and abs(value) > 1e18:
        raise _bad(where, name, "a smaller number")


def _bad(where: str, name: str, expected: str) -> BadInput:
    return BadInput(f"{where} is no result of `pion bench`: {name} must be {expected}")


@dataclass(frozen=True)
class TrainSpeed:
    """The speed of training a preset on one card.

    Attributes:
        flops_per_token: the arithmetic of a token, to tell whether the preset has changed since.
        mfu: the share of the peak FLOP/s that training reached.
        documents: whether tokens were masked within documents, as in a job.
    """

    model: str
    params: int
    flops_per_token: float
    seq_len: int
    dtype: str
    compiled: bool
    recompute: bool
    micro_batch: int
    tokens_per_second: float
    mfu: float
    documents: bool = False


def train_speeds(results: Results) -> Iterator[TrainSpeed]:
    """Yield the measured speeds of training, but not if a measure is missing or makes no sense."""
    names = [entry.name for entry in dataclasses.fields(TrainSpeed)]
    for row in results.rows:
        if not row.name.startswith(TRAIN) or row.verdict != "measured":
            continue
        try:
            measures = {"documents": False} | row.measures
            speed = _record(TrainSpeed, {name: measures[name] for name in names}, "", "")
        except (KeyError, BadInput):
            continue
        numbers = [value for value in vars(speed).values() if not isinstance(value, bool | str)]
        if all(0 < number < math.inf for number in numbers) and speed.mfu <= 1:
            yield speed
