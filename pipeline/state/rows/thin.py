"""Thinned rows: what costs and curves need of a joined object of metrics, in a file next to it.

    <folder>/<epoch>/000100-000199-1-345678.jsonl    10,000 rows
    <folder>/<epoch>/000100-000199-1-345678.thin     how many rows follow, and some 450 of them

A run of a million steps is read in seconds from these files. The rows that stay are the first, the
last, those without a loss, and of each range of steps those with the lowest and the highest loss
and with the largest norm of the gradients. A row that also stands for the steps before it says so:

    "stands_for": {"steps": 96, "from_step": 4001, "row_seconds": 12.5}

`row_seconds` is the sum of what each step's number of rows, divided by its tokens per second, was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pion.errors import BadInput
from pion.untrusted import parse_object
from pipeline.state.record_json import finite_json
from pipeline.state.rows.row_types import LARGEST_SEGMENT, Row, Unreadable, metrics_row
from pipeline.state.rows.segments import Replaced, Segment, found_in, without_parts
from pipeline.state.stores import Missing, Store
from pipeline.state.stores.base import read_all

# The steps of an object are divided into so many ranges.
RANGES = 100
# So many of the last rows of an object all stay: pages show how fast the last steps were.
TAIL = 50
# Rows written within this many seconds of each other were reported together.
TOGETHER = 0.01
# A thinned file that has more than this share of the bytes is not worth a file.
WORTH = 0.5
# While a reader has more rows of joined objects than this, it keeps fewer of each: the page of a
# run looks at all of them every few seconds. A curve on a page has at most 2,000 points.
MOST_ROWS = 10_000
# So often a reader lists the files: one that is listed and then gone has been joined since.
LISTS = 3


def thin_key(key: str) -> str:
    """Return the key of the thinned rows of the joined object `key`."""
    return key.removesuffix(".jsonl") + ".thin"


def step_count(row: Mapping[str, Any]) -> int:
    """Return how many optimizer steps a row stands for; 0 for one without a loss."""
    return int(row["stands_for"]["steps"]) if "stands_for" in row else int("loss" in row)


def row_seconds(row: Mapping[str, Any]) -> float:
    """Return the seconds of a row's steps, divided by the tokens in a row of training data;
    infinite if it does not say."""
    if "stands_for" in row:
        seconds: float | None = row["stands_for"]["row_seconds"]
        return math.inf if seconds is None else seconds
    first, stop = row.get("rows") or (0, 0)
    speed = row.get("tokens_per_second") or 0.0
    return (stop - first) / speed if stop > first and speed else math.inf


def kept_steps(row: Mapping[str, Any], last_kept: int) -> int:
    """Return how many of a row's steps are at most `last_kept`."""
    count = step_count(row)
    if "stands_for" not in row:
        return count if row["step"] <= last_kept else 0
    return max(0, min(count, last_kept - int(row["stands_for"]["from_step"]) + 1))


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one epoch, in the order of their report, with fewer of those with a loss.

    `rows` may be thinned already.
    """
    return [*_thinned(rows, RANGES, TAIL).values()]


def _thinned(rows: Sequence[Row], ranges: int, tail: int) -> dict[int, Row]:
    """Return by their numbers the rows that stay: of each of `ranges`, the last `tail`, and those
    that must."""
    ends = _ends_of_reports(rows)
    chosen = _kept(rows, ranges, tail)
    chosen |= {ends[i] for i in chosen}
    result: dict[int, Row] = {}
    waiting: list[Row] = []
    for i, row in enumerate(rows):
        if "loss" not in row:
            result[i] = row
            continue
        waiting.append(row)
        if i not in chosen:
            continue
        if ends[i] > i:  # the end of its report stands for it
            result[i] = {**row, "stands_for": _stands_for([])}
        elif len(waiting) == 1:
            result[i] = row
            waiting = []
        else:
            result[i] = {**row, "stands_for": _stands_for(waiting)}
            waiting = []
    return result


def _stands_for(rows: Sequence[Row]) -> dict[str, float | None]:
    seconds = sum(row_seconds(row) for row in rows if step_count(row))
    begins = [int(r["stands_for"]["from_step"]) if "stands_for" in r else r["step"] for r in rows]
    return {
        "steps": sum(map(step_count, rows)),
        "from_step": min(begins, default=0),
        "row_seconds": seconds if math.isfinite(seconds) else None,
    }


def _ends_of_reports(rows: Sequence[Row]) -> list[int]:
    """Return, for each row, the number of the last row that was reported together with it.

    A row without a loss ends a report: the seconds before it are not those of a step.
    """
    ends = list(range(len(rows)))
    for i in range(len(rows) - 2, -1, -1):
        row, after = rows[i], rows[i + 1]
        if "loss" in row and "loss" in after and 0 <= after["at"] - row["at"] < TOGETHER:
            ends[i] = ends[i + 1]
    return ends


def _kept(rows: Sequence[Row], ranges: int, tail: int) -> set[int]:
    """Return the numbers of the rows that stay."""
    losses = [i for i, row in enumerate(rows) if "loss" in row]
    chosen = {*losses[:1], *losses[-tail:]}
    # The last before a row without a loss, which is an evaluation and takes its own time.
    chosen |= {i for i in losses if i + 1 < len(rows) and "loss" not in rows[i + 1]}
    width = max(1, -(-len(losses) // ranges))
    for start in range(0, len(losses), width):
        some = losses[start : start + width]
        if finite := [i for i in some if rows[i]["loss"] is not None]:
            chosen.add(min(finite, key=lambda i: rows[i]["loss"]))
            chosen.add(max(finite, key=lambda i: rows[i]["loss"]))
        if finite := [i for i in some if rows[i].get("grad_norm") is not None]:
            chosen.add(max(finite, key=lambda i: rows[i]["grad_norm"]))
    return chosen


# ---------------------------------------------------------------- files


def thin_of(store: Store, parts: Sequence[Segment], contents: Sequence[bytes]) -> bytes | None:
    """Return the content of the file of thinned rows for the object that joins `parts`; None if it
    is not worth a file. Raises StoreError."""
    rows: dict[int, Row] = {}
    for part, content in zip(parts, contents):
        rows |= (read_thin(store, part) if part.level else None) or _rows_of(content.splitlines())
    thin_rows = thinned([*rows.values()])
    lines = [finite_json({"rows": len(thin_rows)}), *map(finite_json, thin_rows)]
    thin = "".join(f"{line}\n" for line in lines).encode()
    return thin if len(thin) <= WORTH * sum(map(len, contents)) else None


def read_thin(store: Store, segment: Segment) -> dict[int, Row] | None:
    """Return the thinned rows of a joined object by a hash of their lines; None if they can't all
    be read. Raises StoreError."""
    try:
        lines = store.read(thin_key(segment.key), LARGEST_SEGMENT).splitlines()
        count = parse_object(lines[0], "the line").get("rows") if lines else None
    except (BadInput, Missing):
        return None
    rows = _rows_of(lines[1:])
    return rows if count == len(rows) == len(lines) - 1 else None


def _rows_of(
    lines: Iterable[bytes], row_of: Callable[[bytes], Row | None] = metrics_row
) -> dict[int, Row]:
    """Return the rows of those lines that can be read, by a hash of the line.

    An attempt writes a row again if it was not told that it was written. Such rows count once.
    """
    return {hash(line): row for line in lines if (row := row_of(line)) is not None}


def _fewer(rows: Mapping[int, Row | None], ranges: int) -> dict[int, Row | None]:
    """Return the rows of a file with None in place of those that are left out. Their hashes stay,
    by which a row that a later file has again is recognized."""
    lines = [line for line, row in rows.items() if row is not None]
    chosen = _thinned([row for row in rows.values() if row is not None], ranges, tail=1)
    return {**dict.fromkeys(rows), **{lines[i]: row for i, row in chosen.items()}}


class ThinReader:
    """Reads the rows below a folder, each file only once: all rows, or thinned where they are
    thinned. `row_of` reads a line: `metrics_row` or `event_row`.

    Counts the rows that can't be read in `unreadable`.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        unreadable: Unreadable,
        row_of: Callable[[bytes], Row | None] = metrics_row,
        *,
        all_rows: bool = False,
    ) -> None:
        self._store, self._folder, self._unreadable = store, folder, unreadable
        self._row_of, self._all_rows = row_of, all_rows
        self._present: set[Segment] = set()
        self._thin: set[str] = set()
        # Of each file, by the hash of its line: a row, or None if another row stands for it.
        self._rows: dict[str, Mapping[int, Row | None]] = {}
        # In how many ranges an object's rows are divided, if more of them are left out here.
        self._ranges: dict[str, int] = {}
        self._most_ranges = RANGES

    def read(self) -> list[Row]:
        """Return all rows there are now, by epoch and file. Reads only files that are new.

        Raises StoreError, and then the next call reads the same files. Raises Replaced if a file
        that was read is gone, and no object has joined it.
        """
        for _ in range(LISTS):
            wanted = self._listed()
            new = [segment for segment in wanted if segment.key not in self._rows]
            segment_rows = zip(new, read_all(self._read, new))
            self._rows |= {segment.key: rows for segment, rows in segment_rows if rows is not None}
            gone = [segment.key for segment in wanted if segment.key not in self._rows]
            if not gone:
                break
        for key in gone:
            self._unreadable.add_file(f"{self._store.url}/{key}")
            self._rows[key] = {}
        self._rows = {segment.key: self._rows[segment.key] for segment in wanted}
        if not self._all_rows:
            self._leave_out([segment.key for segment in wanted if segment.level])
        different: dict[int, Row | None] = {}
        for of_file in self._rows.values():
            for line, row in of_file.items():
                different.setdefault(line, row)
        return [row for row in different.values() if row is not None]

    def _leave_out(self, joined: Sequence[str]) -> None:
        """Keep fewer rows of the `joined` objects, but not of the last, while the others have more
        than MOST_ROWS. Each object is thinned a few times in all, and not at each look."""
        while True:
            for key in joined[:-1]:
                if self._ranges.get(key, RANGES) > self._most_ranges:
                    self._rows[key] = _fewer(self._rows[key], self._most_ranges)
                    self._ranges[key] = self._most_ranges
            # Rows that no object has joined yet don't count: leaving out others doesn't help there.
            row_count = sum(
                row is not None for key in joined[:-1] for row in self._rows[key].values()
            )
            if row_count <= MOST_ROWS or self._most_ranges == 1:
                return
            self._most_ranges = max(1, self._most_ranges // 2)

    def _listed(self) -> list[Segment]:
        """Return the files to read, in the order of their rows. Raises Replaced."""
        misplaced = Unreadable() if self._present else self._unreadable  # each counts once
        entries = self._store.list(self._folder)
        before = self._present
        self._present = {*found_in(entries, self._folder, self._store.url, misplaced)}
        self._thin = {entry.key for entry in entries if entry.key.endswith(".thin")}
        joined = [segment for segment in self._present if segment.level]
        for gone in before - self._present:
            if not any(around.contains(gone) for around in joined):
                raise Replaced(f"Files of {self._store.url}/{self._folder} are gone.")
        return without_parts(self._present)

    def _read(self, segment: Segment) -> Mapping[int, Row] | None:
        """Return the rows of a file by the hashes of their lines; None if the file is gone."""
        if not self._all_rows and thin_key(segment.key) in self._thin:
            thin = read_thin(self._store, segment)
            if thin is not None:
                return thin
        where = f"{self._store.url}/{segment.key}"
        try:
            lines = self._store.read(segment.key, LARGEST_SEGMENT).splitlines()
        except Missing:
            return None
        except BadInput:
            self._unreadable.add_file(where)
            return {}
        rows = _rows_of(lines, self._row_of)
        for _ in range(len({*lines}) - len(rows)):
            self._unreadable.add(where)
        return rows
