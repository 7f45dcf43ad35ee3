"""The curves of a run: what each kept step measured, thinned for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.state.metrics import kept_rows
from pipeline.state.records import Head

NAMES = ("loss", "held_out_loss", "lr", "tokens_per_second")
# Digits that a screen can show.
DIGITS = 6

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CurveKey:
    """Which curve: a training stage, and one of NAMES."""

    stage: str
    name: str


@dataclass(frozen=True)
class Rewound:
    """Steps `first` to `last` of a stage no longer count: the attempt `epoch` repeats them."""

    stage: str
    first: int
    last: int
    epoch: int


def curves_of(stage: str, rows: Sequence[Row]) -> dict[CurveKey, list[Point]]:
    """Return the thinned curves of a stage that have points. `rows` are sorted by step."""
    found = {}
    for name in NAMES:
        points = [
            (row["step"], float(value))
            for row in rows
            if (value := row.get(name)) is not None and math.isfinite(value)
        ]
        if points:
            kept = thin(points)
            found[CurveKey(stage, name)] = [(step, float(f"{v:.{DIGITS}g}")) for step, v in kept]
    return found


def keep(metrics: Mapping[str, Iterable[Row]], head: Head) -> dict[str, list[Row]]:
    """Return each stage's rows that lead to its present state, by step."""
    return {stage: list(kept_rows(rows, head, stage)) for stage, rows in metrics.items()}  # type: ignore[arg-type]


def rewound(
    before: Mapping[str, Sequence[Row]], now: Mapping[str, Sequence[Row]], head: Head
) -> list[Rewound]:
    """Return which steps of each stage counted `before` and no longer do."""
    found = []
    for stage, rows in before.items():
        present = {id(row) for row in now.get(stage, ())}
        lost = [row["step"] for row in rows if id(row) not in present]
        if lost:
            found.append(Rewound(stage, min(lost), max(lost), head.epoch))
    return found


def attempts(rows: Sequence[Row]) -> list[dict[str, int]]:
    """Return where each attempt's kept rows begin: its first step and its epoch."""
    starts = []
    epoch = None
    for row in rows:
        if row["epoch"] != epoch:
            epoch = row["epoch"]
            starts.append({"step": row["step"], "epoch": epoch})
    return starts


MOST_POINTS = 2000

Point = tuple[int, float]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` of the points (step, value), in order. `points` are sorted by step.

    The steps are divided into equally wide ranges. Each range keeps its lowest and its highest
    point, and the curve keeps its first and last point. The width is a power of two, so that the
    earlier part of a growing curve rarely changes.
    """
    if len(points) <= most:
        return list(points)
    width = 1
    while width < 2 * len(points) / most:  # fewer points than this in a range are never enough
        width *= 2
    while 2 * len({step // width for step, _ in points}) + 2 > most:
        width *= 2
    kept = {0, len(points) - 1}
    for begin, end in _ranges(points, width):
        numbers = range(begin, end)
        kept.add(min(numbers, key=lambda i: points[i][1]))
        kept.add(max(numbers, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def _ranges(points: Sequence[Point], width: int) -> Iterator[tuple[int, int]]:
    """Yield [begin, end) of the points in each range of `width` steps."""
    begin = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i][0] // width != points[begin][0] // width:
            yield begin, i
            begin = i
