"""When a training stage is saved, and what happens while its store can't be reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pion.errors import NotDurable
from pipeline.console.formats import duration
from pipeline.console.messages import CheckpointSaved, Note, Say
from pipeline.job import Checkpoint
from pipeline.state.checkpoints.checkpointer import Checkpointer
from pipeline.state.owner import launch_id
from pipeline.state.patience import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import SaveCadence

if TYPE_CHECKING:
    from pion.train.trainer import TrainState

RENTAL_LINGER = 1800.0


class Saving:
    """Rank 0's saves of one stage.

    `on_cpu`: training and the uploader share their cores. `state` gives the last finished step's
    state, `prepare` is called before each snapshot (the metrics of a saved step are saved with it)
    and `report` hears what has become durable.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        stage: str,
        settings: Checkpoint,
        workspace: Workspace,
        *,
        preemption_seconds: float,
        on_cpu: bool,
        state: Callable[[], TrainState],
        prepare: Callable[[], None],
        report: Say,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.checkpointer, self.settings = checkpointer, settings
        self._stage, self._workspace = stage, workspace
        self._state, self._prepare, self._report = state, prepare, report
        self._sleep, self._now = sleep, now
        self._on_cpu = on_cpu
        self.cadence = SaveCadence(
            every_steps=settings.every_steps,
            every_seconds=settings.every_seconds,
            preemption_seconds=preemption_seconds,
            floor_seconds=workspace.store.save_seconds,
            last_save=now(),
        )
        self._durable_step: int | None = None
        self._durable_since = now()
        self._outage: str | None = None

    def due(self, step: int) -> bool:
        """Whether the state after `step` should be saved."""
        return self.cadence.due(step, self._now())

    def too_soon(self) -> bool:
        """Whether the store does not bear another save yet."""
        return self.cadence.too_soon(self._now())

    def begin(self) -> None:
        """Save the last finished step in the background."""
        self._prepare()
        state = self._state()
        started = self._now()
        if self.checkpointer.save(state.model, state.optimizer, state.meta):
            stats = self.checkpointer.stats
            # On a CPU the writing takes cores from training: measured, half of its time.
            slowed = stats.write_seconds / 2 if self._on_cpu else 0.0
            self.cadence.saved(started, stats.stall_seconds + slowed, stats.write_seconds)

    def complete(
        self, patience: float | None = None, give_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Save the last finished step and return when it is durable.

        While the store is down it tries again for `patience` seconds (`checkpoint.linger`), then
        raises `NotDurable` naming the copy on this machine; or until `give_up` says so.
        """
        patience = linger_seconds(self.settings) if patience is None else patience
        end, delay = self._now() + patience, FIRST_RETRY_SECONDS
        while True:
            self.checkpointer.wait()
            self.begin()
            self.checkpointer.wait()
            self.follow()
            outage = self.checkpointer.stats.outage
            if outage is None:
                return
            if self.checkpointer.stats.deaths == 1:
                continue  # the uploading process was killed, and the next one may live
            if self._now() + delay > end:
                raise NotDurable(self._not_durable(outage, patience))
            self._wait(delay)
            if give_up():
                return
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Say that it goes on, so that a log shows why nothing else happens; then sleep."""
        text = f"the store can't be reached; trying again in {duration(seconds)}"
        self._report(Note(text))
        self._sleep(seconds)

    def follow(self) -> None:
        """Say what has become durable, or that nothing does. Called after each step."""
        stats = self.checkpointer.stats
        if stats.durable_step is not None and stats.durable_step != self._durable_step:
            self._durable_step, self._durable_since = stats.durable_step, self._now()
            steps_alone = self.settings.every_steps and self.settings.every_seconds is None
            self._report(
                CheckpointSaved(
                    stage=self._stage,
                    step=stats.durable_step,
                    saved=stats.saved,
                    stall=stats.stall_seconds,
                    write=stats.write_seconds,
                    interval=None if steps_alone else self.cadence.interval,
                )
            )
        if stats.outage != self._outage:
            self._outage = stats.outage
            text = f"nothing can be saved now: {stats.outage} Training goes on and tries again."
            self._report(Note(text if stats.outage else "saving works again"))

    def too_long_undurable(self) -> bool:
        """Whether nothing has become durable for `checkpoint.max_undurable` seconds: work that may
        be lost is not worth its price."""
        undurable = self._now() - self._durable_since
        return self.checkpointer.stats.outage is not None and (
            undurable > self.settings.max_undurable
        )

    def hold(self, asked: Callable[[], bool]) -> None:
        """Stand still until the last finished step is durable, or a stop is `asked`."""
        since = duration(self._now() - self._durable_since)
        outage = self.checkpointer.stats.outage
        text = f"training pauses: nothing could be saved for {since}. {outage}"
        self._report(Note(text))
        self.complete(patience=math.inf, give_up=asked)

    def _not_durable(self, outage: str, patience: float) -> str:
        tried = f" Tried for {duration(patience)}." if patience else ""
        text = (
            f"{outage}{tried} Everything committed before is safe in {self._workspace.store.url}."
        )
        again = "When the store can be reached again, run the same command"
        copy = self.checkpointer.local_copy()
        if copy is not None:
            return (
                f"{text} The last finished step is saved on this machine, in {copy}. {again} on "
                "this machine: it goes on from that copy."
            )
        return f"{text} {again}."


def linger_seconds(settings: Checkpoint) -> float:
    """How long to keep trying before giving up: a rented machine takes its disk along."""
    if settings.linger is not None:
        return settings.linger
    return RENTAL_LINGER if launch_id() else 0.0
