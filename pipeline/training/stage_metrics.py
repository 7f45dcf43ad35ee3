"""The metrics of one stage: kept in memory, written to the store in the background, and shown by
TensorBoard, Weights & Biases and Trackio, if the job asks for them.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from pion.errors import BadInput, Fenced
from pipeline.job import Job
from pipeline.machine.own_files import how_to_install
from pipeline.state.claim import Claim
from pipeline.state.rows.metrics import MetricsLog, join_left
from pipeline.state.stores import StoreError

FLUSH_SECONDS = 10.0
# What earlier epochs left is joined soon after the start, but not during it: after so many flushes.
JOIN_AT = 6
# The speed of a stage is the median of so many rows, the newest. It is written if there are enough,
# and again if it has changed by this share.
SPEEDS, LEAST_SPEEDS, SPEED_CHANGE = 300, 3, 0.05
_NOT_A_METRIC = {"step", "epoch", "stage", "rows"}
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One program that shows a run's metrics. All attempts continue one run there."""

    def log(self, stage: str, numbers: Mapping[str, float], step: int) -> None:
        """Pass on the numbers of a step, whose names begin with the stage."""

    def note(self, text: str, step: int) -> None:
        """Show a text at a step."""

    def close(self) -> None:
        """Flush what is buffered."""


class TensorBoard:
    """Event files in the folder `log.tensorboard`."""

    def __init__(self, job: Job) -> None:
        _load("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(f"{job.log.tensorboard}/{job.name}")

    def log(self, stage: str, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def note(self, text: str, step: int) -> None:
        self._board.add_text("notes", text, step)

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of the project `log.wandb`, whose id is the run's name."""

    def __init__(self, job: Job) -> None:
        self._run = _load("wandb").init(
            project=job.log.wandb,
            id=job.name,
            name=job.name,
            resume="allow",
            config=job.model_dump(mode="json"),
        )

    def log(self, stage: str, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, f"{stage}/step": step})

    def note(self, text: str, step: int) -> None:
        self._run.notes = "\n".join(filter(None, [self._run.notes, text]))

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project `log.trackio`: a file on this machine, or a private Space on the Hub."""

    def __init__(self, job: Job) -> None:
        self._trackio = _load("trackio")
        self._trackio.init(
            project=job.log.trackio,
            name=job.name,
            space_id=job.log.trackio_space,
            private=True,
            resume="allow",
            config=job.model_dump(mode="json"),
            embed=False,
            # The run's own metrics have these numbers.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, stage: str, numbers: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(numbers), step=step)

    def note(self, text: str, step: int) -> None:
        self._trackio.alert(title=f"step {step:,}", text=text, level=self._trackio.AlertLevel.INFO)

    def close(self) -> None:
        self._trackio.finish()


# By its field in `log`.
_TRACKERS: dict[str, Callable[[Job], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def check_trackers(job: Job, *, rented: bool = False) -> None:
    """Raise BadInput, before any work, if a tracker that the job asks for is not installed, or if
    what it writes would be lost with a `rented` machine."""
    for name in _asked_for(job):
        _load(name)
    if rented and job.log.trackio and not job.log.trackio_space:
        raise BadInput(
            "log.trackio: Trackio writes to a file of the machine, which is lost with a rented "
            "machine. Nothing was started. Name a Space on the Hub to write to, such as "
            "log.trackio_space=user/trackio, or remove log.trackio. The run's own metrics are in "
            "its store in any case."
        )


class Trackers:
    """Writes metrics rows of one stage to the trackers in `job.log` (default: none)."""

    def __init__(self, job: Job, stage: str) -> None:
        self._stage = stage
        self._trackers: list[Tracker] = [_TRACKERS[name](job) for name in _asked_for(job)]

    def log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Pass on the numbers of `rows`, each with its `step`."""
        for row in rows if self._trackers else ():
            numbers = {f"{self._stage}/{name}": value for name, value in _numbers(row).items()}
            for tracker in self._trackers:
                tracker.log(self._stage, numbers, row["step"])

    def rewound(self, step: int, why: str) -> None:
        """Say that a bad step ends this attempt: the next one repeats the steps since a checkpoint.

        The metric `rewound_from` and a note stay with the tracked run.
        """
        text = f"{self._stage} step {step:,} gave {why}: back to the last checkpoint"
        for tracker in self._trackers:
            tracker.log(self._stage, {f"{self._stage}/rewound_from": step}, step)
            tracker.note(text, step)

    def close(self) -> None:
        """Flush what is buffered."""
        for tracker in self._trackers:
            tracker.close()


def _asked_for(job: Job) -> list[str]:
    return [name for name in _TRACKERS if getattr(job.log, name)]


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the metrics of a row. Those of each layer get the number of the layer."""
    numbers: dict[str, int | float] = {}
    for name, value in row.items():
        if name in _NOT_A_METRIC:
            continue
        if isinstance(value, int | float):
            numbers[name] = value
        elif isinstance(value, list):
            numbers |= {f"{name}/{layer}": number for layer, number in enumerate(value)}
    return numbers


def _load(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(
            f"log.{name}: the package {name} is not installed. Nothing was started. "
            f"Install it with `{how_to_install(name)}`, or remove log.{name}."
        ) from None


class StageMetrics:
    """Rank 0's metrics of one stage under `claim`. `log` has the rows not written yet, and
    `trackers` shows them elsewhere. `keep_speed` writes the tokens per second for later plans."""

    def __init__(
        self,
        claim: Claim,
        stage: str,
        trackers: Trackers,
        keep_speed: Callable[[float], None] = lambda speed: None,
    ) -> None:
        self._claim = claim
        run = claim.state
        self.log = MetricsLog(run.store, run.name, stage, claim.epoch, run.clock.now)
        self.trackers = trackers
        self._keep_speed = keep_speed
        self._speeds: deque[float] = deque(maxlen=SPEEDS)
        self._kept_speed = 0.0
        self._stage = stage
        self._flushes = 0
        self._flusher = threading.Thread(target=self._flush_and_join, daemon=True)
        self._last_flush = time.monotonic()

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows of numbers, each with its step, and pass them on to the job's trackers."""
        for row in rows:
            self.log.append(row)
            if row.get("tokens_per_second"):
                self._speeds.append(row["tokens_per_second"])
        self.trackers.log(rows)

    def flush_if_due(self) -> None:
        """Write the rows from a thread, every few seconds.

        No step waits for the store, because a store that is down may take long to fail. If the
        store writes only in commits, the next commit carries the rows.
        """
        due = time.monotonic() - self._last_flush > FLUSH_SECONDS
        if due and not self._claim.store.commits and not self._flusher.is_alive():
            self._flusher = threading.Thread(target=self._flush_and_join, daemon=True)
            self._flusher.start()
            self._last_flush = time.monotonic()

    def flush(self) -> None:
        """Write the rows. If that fails, they stay in memory, and the next save writes them."""
        try:
            self._claim.check()
            self.log.flush()
            self._keep_new_speed()
        except (StoreError, Fenced) as error:
            _log.warning("Metrics were not written: %s", error)

    def close(self) -> None:
        """Write the remaining rows, and close the trackers."""
        with closing(self.trackers):
            self.flush()

    def _flush_and_join(self) -> None:
        """Write the rows, and once join what earlier owners left."""
        self.flush()
        self._flushes += 1
        if self._flushes == JOIN_AT:
            run, claim = self._claim.state, self._claim
            try:
                join_left(run.store, run.name, self._stage, claim.epoch, claim.check)
            except (StoreError, Fenced) as error:
                _log.warning("Files of metrics were not joined: %s", error)

    def _keep_new_speed(self) -> None:
        speeds = list(self._speeds)
        if len(speeds) >= LEAST_SPEEDS:  # the first steps are slow
            speed = statistics.median(speeds)
            if abs(speed - self._kept_speed) > SPEED_CHANGE * self._kept_speed:
                self._keep_speed(speed)
                self._kept_speed = speed
