"""Rows that a run reports: metrics by stage, and events. Rows are written in segments, and each
segment is written once."""

import itertools
import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.state.head import Head
from pipeline.state.record_json import finite_json
from pipeline.state.rows.row_types import Row, Unreadable, event_row
from pipeline.state.rows.segments import segments
from pipeline.state.rows.thin import ThinReader
from pipeline.state.stores import Store

# No step is later.
LAST_STEP = 2**63


class _RowLog:
    """Rows of one epoch, appended to numbered files in a folder. Appending never waits for a
    write."""

    def __init__(self, store: Store, folder: str, epoch: int, now: Callable[[], float]) -> None:
        self._store, self._epoch, self._now = store, epoch, now
        self._log, self._folder = f"{folder}/", f"{folder}/{epoch}"
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
                written = segments(self._store, self._log, Unreadable(), f"{self._epoch}/")
                self._next = 1 + max((segment.last for segment in written), default=-1)
            key = f"{self._folder}/{self._next:06d}.jsonl"
            # Use a new number even if this write fails: the failed write may still land later.
            self._next += 1
            self._store.write(key, _as_lines(rows).encode())
            with self._lock:
                del self._rows[: len(rows)]

    def unwritten(self) -> str:
        """Return the rows that a flush would write, as JSON lines."""
        with self._lock:
            return _as_lines(self._rows)

    def _add(self, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._rows.append({**row, "epoch": self._epoch, "at": self._now()})


def _as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(finite_json(row) + "\n" for row in rows)


class MetricsLog(_RowLog):
    """The metrics of one stage under one epoch. A row has a `step`, and gets `epoch` and `at`."""

    def __init__(
        self,
        store: Store,
        run: str,
        stage: str,
        epoch: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(store, f"{run}/metrics/{stage}", epoch, now)

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row in memory until `flush`. Raises `ValueError` if the row has no step."""
        if "step" not in row:
            raise ValueError(f"a metrics row needs a step: {dict(row)}")
        self._add(row)

    def adopt(self, lines: str) -> None:
        """Keep the rows of an earlier attempt unchanged, and write them with the next flush."""
        with self._lock:
            self._rows.extend([json.loads(line) for line in lines.splitlines()])


class EventLog(_RowLog):
    """What happened to a run under one epoch: claims, restores, stages, warnings."""

    def __init__(
        self, store: Store, run: str, epoch: int, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(store, f"{run}/events", epoch, now)

    def append(self, kind: str, **fields: Any) -> None:
        """Keep an event in memory until `flush`."""
        self._add({**fields, "event": kind})


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
    return ThinReader(store, folder, unreadable or Unreadable(), all_rows=True).read()


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
    return ThinReader(store, f"{run}/events/", unreadable or Unreadable(), event_row).read()
