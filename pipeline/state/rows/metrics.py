"""Rows that a run reports: metrics by stage, and events. Each file of rows is written once, and
files of metrics are joined, so that a long run has few."""

import contextlib
import itertools
import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.state.head import Head
from pipeline.state.record_json import Damaged, finite_json
from pipeline.state.rows.row_types import Row, Unreadable, event_row
from pipeline.state.rows.segments import (
    CLOSED,
    RowReader,
    Segment,
    joined,
    segments,
    without_parts,
)
from pipeline.state.rows.thin import thin_key, write_file
from pipeline.state.stores import Missing, Store, StoreError
from pipeline.state.stores.base import read_all

# No step is later.
LAST_STEP = 2**63
# So many files of a level become one, or fewer that have more bytes together.
PARTS = 32
MOST_BYTES = 8 << 20
# What the earlier owners left is joined while it has at most so many bytes: it is read again.
MOST_READ = 64 << 20


class _RowLog:
    """Rows of one epoch, appended to numbered files in a folder. Appending never waits for a
    write."""

    def __init__(self, store: Store, folder: str, epoch: int, now: Callable[[], float]) -> None:
        self._store, self._epoch, self._now = store, epoch, now
        self._folder = f"{folder}/"
        self._rows: list[Row] = []
        self._next: int | None = None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def flush(self) -> None:
        """Write the rows that are not yet written; if that fails, they stay in memory."""
        with self._flushing:
            with self._lock:
                rows = list(self._rows)
            if not rows:
                return
            if self._next is None:
                entries = self._store.list(f"{self._folder}{self._epoch}/")
                numbers = (segment.last for segment in segments(entries, self._folder))
                self._next = 1 + max(numbers, default=-1)
            # Use a new number even if this write fails: the failed write may still land later.
            self._next += 1
            self._write(self._next - 1, _as_lines(rows).encode())
            with self._lock:
                del self._rows[: len(rows)]

    def unwritten(self) -> str:
        """Return the rows that a flush would write, as JSON lines."""
        with self._lock:
            return _as_lines(self._rows)

    def _add(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._rows.append({**row, "epoch": self._epoch, "at": self._now()})

    def _write(self, number: int, lines: bytes) -> None:
        self._store.write(self._key(number), lines)

    def _key(self, number: int) -> str:
        return f"{self._folder}{self._epoch}/{number:06d}.jsonl"


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(finite_json(row) + "\n" for row in rows)


class MetricsLog(_RowLog):
    """The metrics of one stage under one epoch. A row has a `step`, and gets `epoch` and `at`.

    A run of weeks flushes some ten thousand times a day. So that it has few files, each `PARTS`-th
    flush writes again what the flushes before it wrote, in one file, and deletes their files. If
    the owner dies in between, `join_left` of a later owner deletes them.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        stage: str,
        epoch: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(store, f"{run}/metrics/{stage}", epoch, now)
        # The files that will be joined, in their order, with their contents.
        self._parts: dict[Segment, bytes] = {}
        # The number after the last flush that succeeded.
        self._after: int | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row in memory until `flush`. Raises `ValueError` if the row has no step."""
        if "step" not in row:
            raise ValueError(f"a metrics row needs a step: {dict(row)}")
        self._add(row)

    def adopt(self, lines: str) -> None:
        """Keep the rows of an earlier attempt unchanged, and write them with the next flush."""
        with self._lock:
            self._rows.extend([json.loads(line) for line in lines.splitlines()])

    def _write(self, number: int, lines: bytes) -> None:
        # A joined file also stands for flushes that failed, and may have landed.
        first = number if self._after is None else self._after
        new = Segment(self._epoch, first, number, 0, self._key(number), len(lines))
        files = {**self._parts, new: lines}
        for level in range(CLOSED):
            same = {file: part for file, part in files.items() if file.level == level}
            if len(same) == PARTS or sum(file.bytes for file in same) > MOST_BYTES:
                new, lines = joined(self._folder, same)
                files = {f: part for f, part in files.items() if f.level > level} | {new: lines}
        write_file(self._store, new, lines)
        replaced = [part.key for part in self._parts if part not in files]
        self._parts = {} if new.level == CLOSED else files
        self._after = number + 1
        with contextlib.suppress(StoreError):  # readers leave them out
            read_all(self._store.delete, replaced)


class EventLog(_RowLog):
    """What happened to a run under one epoch: claims, restores, stages, warnings.

    Its files are not joined: others may write events under the same epoch, too.
    """

    def __init__(
        self, store: Store, run: str, epoch: int, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(store, f"{run}/events", epoch, now)

    def append(self, kind: str, **fields: Any) -> None:
        """Keep an event in memory until `flush`."""
        self._add({**fields, "event": kind})


def join_left(store: Store, run: str, stage: str, epoch: int, check: Callable[[], None]) -> None:
    """Join the files of metrics that the owners before `epoch` left, and delete the parts.

    `check` raises if this process no longer owns the run. Raises Fenced, and StoreError: then a
    later owner continues.
    """
    folder = f"{run}/metrics/{stage}/"
    files = [s for s in segments(store.list(folder), folder) if s.first >= 0 and s.epoch < epoch]
    alone = without_parts(files)
    replaced = {*files} - {*alone}
    read = 0
    for (_, closed), neighbours in itertools.groupby(alone, lambda s: (s.epoch, s.level == CLOSED)):
        parts = [*neighbours]
        read += sum(part.bytes for part in parts)
        if closed or len(parts) == 1 or read > MOST_READ:
            continue
        if contents := _contents(store, parts):
            check()
            write_file(store, *joined(folder, contents))
            replaced |= {*parts}
    check()
    thin = [thin_key(part.key) for part in replaced if part.level]
    read_all(store.delete, [*thin, *(part.key for part in replaced)])


def _contents(store: Store, parts: Sequence[Segment]) -> dict[Segment, bytes]:
    """Return the contents of files; nothing if one of them can't be read."""
    try:
        contents = read_all(lambda part: store.read(part.key, part.bytes), parts)
    except (Missing, Damaged):
        return {}
    whole = all(len(content) == part.bytes for part, content in zip(parts, contents))
    return dict(zip(parts, contents)) if whole else {}


def read_metrics(store: Store, run: str, head: Head, stage: str) -> list[Row]:
    """Return the stage's rows that lead to its present state, sorted by step.

    A row is dropped when a later epoch resumed from an earlier step: its work was repeated.
    """
    return kept_rows(read_all_metrics(store, run, stage), head, stage)


def read_all_metrics(
    store: Store, run: str, stage: str, unreadable: Unreadable | None = None
) -> list[Row]:
    """Return all of the stage's rows by epoch, including the rows of repeated work.

    A later attempt may write a row of an earlier attempt again. Such a row counts once. Counts the
    rows that can't be read in `unreadable`.
    """
    folder = f"{run}/metrics/{stage}/"
    return RowReader(store, folder, unreadable or Unreadable()).read()


def kept_rows(rows: Iterable[Row], head: Head, stage: str) -> list[Row]:
    """Return the stage's `rows` that lead to its present state, sorted by step."""
    last = last_kept_step(head, stage)
    current = (row for row in rows if row["step"] <= last(row["epoch"]))
    return sorted(current, key=lambda row: (row["step"], row["epoch"]))


def last_kept_step(head: Head, stage: str) -> Callable[[int], int]:
    """Return what says of an epoch up to which step no later epoch repeated its work."""
    restores = {e: steps[stage] for e, steps in head.restores.items() if stage in steps}
    epochs = sorted(restores)
    # The lowest step from which any of the epochs[i:] resumed. Step 0 is a fresh start: all rows of
    # step 0 are reported again.
    last_first = [LAST_STEP, *(restores[epoch] or -1 for epoch in reversed(epochs))]
    lowest = list(itertools.accumulate(last_first, min))[::-1]
    return lambda epoch: lowest[bisect_right(epochs, epoch)]


def read_events(store: Store, run: str, unreadable: Unreadable | None = None) -> list[Row]:
    """Return every event of the run, by epoch and then in the order of the reports.

    An event that was written twice, because an acknowledgement was lost, counts once. Counts the
    events that can't be read in `unreadable`.
    """
    return RowReader(store, f"{run}/events/", unreadable or Unreadable(), event_row).read()
