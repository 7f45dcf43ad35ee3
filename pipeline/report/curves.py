"""The curves of a run: what each kept step measured, thinned so that peaks and dips stay.

Every number of the rows is a curve. A list has a number for each layer; it makes three curves: the
mean, and the layers' lowest and highest. The losses on each source make a curve each, and their
mean.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from pipeline.report.history import Row
from pipeline.state.rows.thin import TOGETHER

# Digits that a screen can show.
DIGITS = 6
MOST_POINTS = 2000
LOWEST, HIGHEST = ".lowest", ".highest"
BY_SOURCE = "held_out"  # the losses on each source
# Keys of a row that are no curve: where it is, and what belongs to another number.
_NO_CURVE = frozenset({"step", "epoch", "at", "held_out_loss_sem"})
# Rows come from a store. A run has some ten numbers.
MOST_NAMES, LONGEST_NAME = 40, 40

# (optimizer step, value, Unix seconds)
Point = tuple[int, float, float]


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of all curves that the rows of a stage have, in the order of the rows."""
    names: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if (
                key not in names
                and key not in _NO_CURVE
                and len(key) <= LONGEST_NAME
                and key.isascii()
                and key.isidentifier()
            ):
                if _is_number(value):
                    names[key] = None
                elif isinstance(value, list) and key != "rows" and any(map(_is_number, value)):
                    names |= dict.fromkeys((key, key + LOWEST, key + HIGHEST))
                elif key == BY_SOURCE:
                    names |= dict.fromkeys((key, *(f"{key}.{source}" for source in value)))
        if len(names) >= MOST_NAMES:
            break
    return list(names)[:MOST_NAMES]


def curves_of(
    rows: Sequence[Row], names: Iterable[str] | None = None, steps: range | None = None
) -> dict[str, list[Point]]:
    """Return those of the curves that have points, thinned. `rows` are a stage's, sorted by step.

    Without `names`, these are all curves. With `steps`, curves have the points of these steps, and
    one before and after them, with which lines to the points begin and end.
    """
    curves = {}
    times = times_of(rows)
    for name in names_of(rows) if names is None else names:
        points = [
            (row["step"], value, at)
            for row, at in zip(rows, times)
            if (value := value_of(row, name)) is not None
        ]
        points = points if steps is None else list(_within(points, steps))
        if points:
            curves[name] = [
                (step, float(f"{value:.{DIGITS}g}"), round(at, 1))
                for step, value, at in thin(points)
            ]
    return curves


def value_of(row: Row, name: str) -> float | None:
    """Return a row's value of a curve; None if the row has none."""
    key, dot, which = name.partition(".")
    value = row.get(key)
    if key == BY_SOURCE and value is not None:
        value, dot = value.get(which) if dot else list(value.values()), ""
    if isinstance(value, list):
        numbers = [each for each in value if _is_number(each)]
        if not numbers or not dot:
            return sum(numbers) / len(numbers) if numbers else None
        return float(min(numbers) if dot + which == LOWEST else max(numbers))
    return float(value) if value is not None and _is_number(value) and not dot else None


def times_of(rows: Sequence[Row]) -> list[float]:
    """Return when each step ended, in Unix seconds.

    Steps that were reported together share the time since the report before theirs evenly. The
    first report of an attempt has none before it: its steps all have the report's time.
    """
    times: list[float] = []
    before: Row | None = None
    for report in _reports(rows):
        last = report[-1]
        for row in report:
            back = 0.0
            if before is not None and before["epoch"] == last["epoch"]:
                steps, seconds = last["step"] - before["step"], last["at"] - before["at"]
                if steps > 0 and seconds > 0:
                    back = seconds * (last["step"] - row["step"]) / steps
            times.append(last["at"] - back)
        before = last
    return times


def _reports(rows: Sequence[Row]) -> Iterable[list[Row]]:
    report: list[Row] = []
    for row in rows:
        if report and not (
            row["epoch"] == report[-1]["epoch"] and abs(row["at"] - report[-1]["at"]) < TOGETHER
        ):
            yield report
            report = []
        report.append(row)
    if report:
        yield report


def attempts(rows: Sequence[Row]) -> list[int]:
    """Return the first kept step of each attempt."""
    return [next(same)["step"] for _, same in groupby(rows, key=itemgetter("epoch"))]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` of the points, in order. `points` are sorted by step.

    The steps are divided into equally wide ranges. Each range keeps its lowest and its highest
    point, and the curve keeps its first and last point. The width is a power of two, so that the
    earlier part of a growing curve rarely changes.
    """
    if len(points) <= most:
        return list(points)
    width = 1
    while width < 2 * len(points) / most:  # fewer points than this in a range are never enough
        width *= 2
    while 2 * len({point[0] // width for point in points}) + 2 > most:
        width *= 2
    chosen = {0, len(points) - 1}
    for _, same_range in groupby(range(len(points)), key=lambda i: points[i][0] // width):
        numbers = list(same_range)
        chosen.add(min(numbers, key=lambda i: points[i][1]))
        chosen.add(max(numbers, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(chosen)]


def _within(points: Sequence[Point], steps: range) -> Sequence[Point]:
    first = bisect_left(points, steps.start, key=itemgetter(0))
    end = bisect_left(points, steps.stop, key=itemgetter(0))
    return points[max(0, first - 1) : end + 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
