"""Rows that a run reports: metrics by stage, and events. Rows are written in segments, and each
segment is written once."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.state.records import Head
from pipeline.state.stores import Store

Row = dict[str, Any]

# Segments read in parallel.
READERS = 16


class MetricsLog:
    """The metrics of one stage under one epoch. A row has a `step`, and gets `epoch` and `at`."""

    def __init__(
        self,
        store: Store,
        run: str,
        stage: str,
        epoch: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._segments = _Segments(store, f"{run}/metrics/{stage}/{epoch}")
        self._epoch = epoch
        self._now = now

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row in memory until `flush`. Raises `ValueError` if the row has no step."""
        if "step" not in row:
            raise ValueError(f"a metrics row needs a step: {dict(row)}")
        self._segments.append({**row, "epoch": self._epoch, "at": self._now()})

    def flush(self) -> None:
        """Write the rows that are not yet written; if that fails, they stay in memory."""
        self._segments.flush()

    def unwritten(self) -> str:
        """Return the rows that a flush would write, as JSON lines."""
        return self._segments.unwritten()

    def adopt(self, lines: str) -> None:
        """Keep the rows of an earlier attempt unchanged, and write them with the next flush."""
        for line in lines.splitlines():
            self._segments.append(json.loads(line))


class EventLog:
    """What happened to a run under one epoch: claims, restores, stages, warnings."""

    def __init__(
        self, store: Store, run: str, epoch: int, now: Callable[[], float] = time.time
    ) -> None:
        self._segments = _Segments(store, f"{run}/events/{epoch}")
        self._epoch = epoch
        self._now = now

    def append(self, kind: str, **fields: Any) -> None:
        """Keep an event in memory until `flush`."""
        self._segments.append({**fields, "event": kind, "epoch": self._epoch, "at": self._now()})

    def flush(self) -> None:
        """Write the events that are not yet written; if that fails, they stay in memory."""
        self._segments.flush()


def read_metrics(store: Store, run: str, head: Head, stage: str) -> list[Row]:
    """Return the stage's rows that lead to its present state, sorted by step.

    A row is dropped when a later epoch resumed from an earlier step: its work was repeated.
    """
    return kept_rows(read_all_metrics(store, run, stage), head, stage)


def read_all_metrics(store: Store, run: str, stage: str) -> list[Row]:
    """Return all of the stage's rows by epoch, including the rows of repeated work.

    A later attempt may write a row of an earlier attempt again. Such a row counts once.
    """
    lines = dict.fromkeys(_lines(store, f"{run}/metrics/{stage}/"))
    return [json.loads(line) for line in lines]


def kept_rows(rows: Iterable[Row], head: Head, stage: str) -> list[Row]:
    """Return the stage's `rows` that lead to its present state, sorted by step."""
    restores = [(epoch, steps[stage]) for epoch, steps in head.restores.items() if stage in steps]
    current = [row for row in rows if not _rewound(row, restores)]
    return sorted(current, key=lambda row: (row["step"], row["epoch"]))


def read_events(store: Store, run: str) -> list[Row]:
    """Return every event of the run, by epoch and then in the order of the reports.

    An event that was written twice, because an acknowledgement was lost, counts once.
    """
    return [json.loads(line) for line in dict.fromkeys(_lines(store, f"{run}/events/"))]


def _rewound(row: Row, restores: Iterable[tuple[int, int]]) -> bool:
    # Step 0 is a fresh start: all rows of step 0 are reported again.
    return any(
        epoch > row["epoch"] and (row["step"] > step or step == 0) for epoch, step in restores
    )


class _Segments:
    """Rows appended to numbered files in a folder. Appending never waits for a write."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._rows: list[Row] = []
        self._next: int | None = None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def append(self, row: Row) -> None:
        with self._lock:
            self._rows.append(row)

    def unwritten(self) -> str:
        with self._lock:
            return "".join(json.dumps(row) + "\n" for row in self._rows)

    def flush(self) -> None:
        with self._flushing:
            with self._lock:
                rows = list(self._rows)
            if not rows:
                return
            if self._next is None:
                self._next = len(self._store.list(self._folder + "/"))
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            key = f"{self._folder}/{self._next:06d}.jsonl"
            # Use a new number even if this write fails: the failed write may still land later.
            self._next += 1
            self._store.write(key, data)
            with self._lock:
                del self._rows[: len(rows)]


def _lines(store: Store, prefix: str) -> list[bytes]:
    segments = sorted(
        (entry.key for entry in store.list(prefix) if entry.key.endswith(".jsonl")),
        key=lambda key: (int(key.split("/")[-2]), key),
    )
    # A long run has thousands of segments, and each costs a round trip to a remote store.
    with ThreadPoolExecutor(READERS) as pool:
        return [line for data in pool.map(store.read, segments) for line in data.splitlines()]
