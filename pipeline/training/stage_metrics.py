"""The metrics of one stage: kept in memory, written to the store in the background, and tracked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from pion.errors import Fenced
from pipeline.state.claim import Claim
from pipeline.state.metrics import MetricsLog
from pipeline.state.stores import StoreError
from pipeline.training.trackers import Trackers

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0


class StageMetrics:
    """Rank 0's metrics of one stage under `claim`. `log` has the rows not written yet."""

    def __init__(self, claim: Claim, stage: str, trackers: Trackers) -> None:
        self._claim = claim
        self.log = MetricsLog(claim.store, claim.state.name, stage, claim.epoch)
        self._trackers = trackers
        self._flusher = threading.Thread(target=self.flush, daemon=True)
        self._last_flush = time.monotonic()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows of numbers, each with its step, and pass them on to the job's trackers."""
        for row in rows:
            self.log.append(row)
        self._trackers.log(rows)

    def rewound(self, step: int, why: str) -> None:
        """Tell the job's trackers that a bad step ends this attempt."""
        self._trackers.rewound(step, why)

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep what the model wrote after `prompt`."""
        sample = {"step": step, "prompt": prompt, "text": text}
        self.log.append({"step": step, "sample": sample})

    def flush_if_due(self) -> None:
        """Write the rows from a thread, every few seconds.

        No step waits for the store, because a store that is down may take long to fail. If the
        store writes only in commits, the next commit carries the rows.
        """
        due = time.monotonic() - self._last_flush > FLUSH_SECONDS
        if due and not self._claim.store.commits and not self._flusher.is_alive():
            self._flusher = threading.Thread(target=self.flush, daemon=True)
            self._flusher.start()
            self._last_flush = time.monotonic()

    def flush(self) -> None:
        """Write the rows. If that fails, they stay in memory, and the next save writes them."""
        try:
            self._claim.check()
            self.log.flush()
        except (StoreError, Fenced) as error:
            _log.warning("Metrics were not written: %s", error)

    def close(self) -> None:
        """Write the remaining rows, and close the trackers."""
        try:
            self.flush()
        finally:
            self._trackers.close()
