"""The curves of a run: what each kept step measured, thinned so that peaks and dips stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.report.history import Row

NAMES = ("loss", "held_out_loss", "lr", "tokens_per_second")
# Digits that a screen can show.
DIGITS = 6
MOST_POINTS = 2000

Point = tuple[int, float]


def curves_of(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Return those of the NAMES that have points, thinned. `rows` are a stage's, sorted by step."""
    found = {}
    for name in NAMES:
        points = [
            (row["step"], float(value))
            for row in rows
            if (value := row.get(name)) is not None and math.isfinite(value)
        ]
        if points:
            found[name] = [(step, float(f"{v:.{DIGITS}g}")) for step, v in thin(points)]
    return found


def attempts(rows: Sequence[Row]) -> list[int]:
    """Return the first kept step of each attempt."""
    starts = []
    epoch = None
    for row in rows:
        if row["epoch"] != epoch:
            epoch = row["epoch"]
            starts.append(row["step"])
    return starts


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
