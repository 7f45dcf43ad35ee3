"""The curves of a run: what each kept step measured, thinned so that peaks and dips stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

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
    return [next(same)["step"] for _, same in groupby(rows, key=itemgetter("epoch"))]


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
    for _, same_range in groupby(range(len(points)), key=lambda i: points[i][0] // width):
        numbers = list(same_range)
        kept.add(min(numbers, key=lambda i: points[i][1]))
        kept.add(max(numbers, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]
