"""Thinned rows: what costs and curves need of a closed file of metrics, in a file next to it.

    <folder>/<epoch>/000000-001023-2-9876543.jsonl    20,000 rows
    <folder>/<epoch>/000000-001023-2-9876543.thin     how many rows follow, and some 400 of them

A run of a million steps is read in seconds from these files. The rows that stay are the first, the
last, those without a loss, and of each range of steps those with the lowest and the highest loss
and with the largest norm of the gradients. A row that also stands for the steps before it says so:

    "stands_for": {"steps": 96, "from_step": 4001, "row_seconds": 12.5}

`row_seconds` is the sum of what each step's number of rows, divided by its tokens per second, was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, TypeVar

from pion.errors import BadInput
from pion.untrusted import parse_object
from pipeline.state.record_json import finite_json
from pipeline.state.rows.row_types import Row
from pipeline.state.rows.segments import CLOSED, RowReader, Segment, lines_of, rows_in
from pipeline.state.stores import Store

# Of more rows, a file of thinned rows keeps so many.
MOST_IN_FILE = 400
# So many a reader keeps: the page of a run looks at all of them every few seconds. A curve on a
# page has at most 2,000 points.
MOST_ROWS = 10_000
# So many of the last rows all stay: pages show how fast the last steps were.
TAIL = 50
# No range of steps is wider. Rows without a loss all stay, and may be more than a reader wants.
WIDEST = 2**40
# Rows written within this many seconds of each other were reported together.
TOGETHER = 0.01

Reported = TypeVar("Reported", bound=Mapping[str, Any])


def thin_key(key: str) -> str:
    """Return the key of the thinned rows of the file `key`."""
    return key.removesuffix(".jsonl") + ".thin"


def step_count(row: Mapping[str, Any]) -> int:
    """Return how many optimizer steps a row stands for; 0 for one without a loss."""
    return int(row["stands_for"]["steps"]) if "stands_for" in row else int("loss" in row)


def row_seconds(row: Mapping[str, Any]) -> float:
    """Return the seconds of a row's steps, divided by the tokens in a row of training data;
    infinite if it does not say."""
    if "stands_for" in row:
        known: float | None = row["stands_for"]["row_seconds"]
        return math.inf if known is None else known
    first, stop = row.get("rows") or (0, 0)
    speed = row.get("tokens_per_second") or 0.0
    return (stop - first) / speed if stop > first and speed else math.inf


def kept_steps(row: Mapping[str, Any], last_kept: int) -> int:
    """Return how many of a row's steps are at most `last_kept`."""
    count = step_count(row)
    if "stands_for" not in row:
        return count if row["step"] <= last_kept else 0
    return max(0, min(count, last_kept - int(row["stands_for"]["from_step"]) + 1))


def reports(rows: Iterable[Reported]) -> Iterator[list[Reported]]:
    """Yield the rows that were reported together, all with a loss or all without."""
    report: list[Reported] = []
    for row in rows:
        if report and not _together(report[-1], row):
            yield report
            report = []
        report.append(row)
    if report:
        yield report


def _together(row: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    same = row["epoch"] == after["epoch"] and ("loss" in row) == ("loss" in after)
    return same and abs(after["at"] - row["at"]) < TOGETHER


def thinned(rows: Sequence[Row], most: int, width: int = 1) -> tuple[list[Row], int]:
    """Return at most `most` rows, if so few can stand for all, and how many steps each range has.

    `rows` are in the order of their report, and may be thinned already. A range has at least
    `width` steps. Widths are powers of two, so that the earlier part of a curve rarely changes.
    """
    few = _thinned(rows, width) if width > 1 else [*rows]
    while len(few) > most and width < WIDEST:
        width *= 2
        few = _thinned(rows, width)
    return few, width


def _thinned(rows: Sequence[Row], width: int) -> list[Row]:
    stay = _staying(rows, width)
    few: list[Row] = []
    waiting: list[Row] = []
    for report in reports(rows):
        if "loss" not in report[0]:
            few += report
            continue
        waiting += report
        last = report[-1]
        if kept := [row for row in report if id(row) in stay]:
            # The last row of a report stands for it.
            few += [{**row, "stands_for": _sum_of([])} for row in kept if row is not last]
            few.append({**last, "stands_for": _sum_of(waiting)} if len(waiting) > 1 else last)
            waiting = []
    return few


def _sum_of(rows: Sequence[Row]) -> dict[str, float | None]:
    counted = [row for row in rows if step_count(row)]
    seconds = sum(map(row_seconds, counted))
    begins = [int(row.get("stands_for", {}).get("from_step", row["step"])) for row in counted]
    return {
        "steps": sum(map(step_count, counted)),
        "from_step": min(begins, default=0),
        "row_seconds": seconds if math.isfinite(seconds) else None,
    }


def _staying(rows: Sequence[Row], width: int) -> set[int]:
    """Return the ids of the rows that stay."""
    losses = [row for row in rows if "loss" in row]
    stay = [*losses[:1], *losses[-TAIL:]]
    # The first and last of an epoch, and the last before an evaluation, which takes its own time.
    for row, after in pairwise(losses):
        stay += [row, after] if row["epoch"] != after["epoch"] else []
    stay += [row for row, after in pairwise(rows) if "loss" not in after]
    for _, same in groupby(losses, key=lambda row: (row["epoch"], row["step"] // width)):
        peers = [*same]
        for name, peak in (("loss", min), ("loss", max), ("grad_norm", max)):
            measured = [row for row in peers if row.get(name) is not None]
            stay += [peak(measured, key=itemgetter(name))] if measured else []
    return {id(row) for row in stay}


# ---------------------------------------------------------------- files


def write_file(store: Store, file: Segment, lines: bytes) -> None:
    """Write a file of metrics. A closed one gets a file of thinned rows before, if there are enough
    rows, so that whoever finds the one finds the other."""
    rows = [*rows_in(lines.splitlines()).values()] if file.level == CLOSED else []
    few, _ = thinned(rows, MOST_IN_FILE)
    if 2 * len(few) < len(rows):
        thin = [finite_json(row) + "\n" for row in ({"rows": len(few)}, *few)]
        store.write(thin_key(file.key), "".join(thin).encode())
    store.write(file.key, lines)


class ThinReader(RowReader):
    """Reads the metrics below a folder, thinned where they are thinned, and keeps few of them."""

    _width = 1

    def read(self) -> list[Row]:
        few, self._width = thinned(super().read(), MOST_ROWS, self._width)
        return few

    def _read(self, segment: Segment) -> Mapping[int, Row] | None:
        thin = self._thin_rows(segment) if thin_key(segment.key) in self._names else None
        return super()._read(segment) if thin is None else thin

    def _thin_rows(self, segment: Segment) -> Mapping[int, Row] | None:
        """Return the thinned rows of a file; None if they can't all be read."""
        lines = lines_of(self._store, thin_key(segment.key)) or [b""]
        try:
            count = parse_object(lines[0], "the line").get("rows")
        except BadInput:
            return None
        rows = rows_in(lines[1:])
        return rows if count == len(rows) == len(lines) - 1 else None
