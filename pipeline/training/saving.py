"""When a training stage is saved, and what happens while its store can't be reached."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pion.errors import NotDurable, PionError
from pipeline.console.formats import duration
from pipeline.console.messages import CheckpointSaved, Note, Say
from pipeline.job import Checkpoint
from pipeline.state.checkpoints.checkpointer import Checkpointer
from pipeline.state.checkpoints.uploader import UploaderDied
from pipeline.state.owner import launch_id
from pipeline.state.stores import StoreError
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.errors import verdict
from pipeline.state.stores.retry import Patience
from pipeline.training.cadence import SaveCadence

if TYPE_CHECKING:
    from pion.train.trainer import TrainState

RENTAL_LINGER = 1800.0
# How long to keep trying before a group of another size continues the run.
RESIZE_LINGER = 1500.0


class _GivenUp(Exception):
    """A stop was asked for while the store can't be reached."""


class Saving:
    """The saves of one stage: when, and what to do when they fail.

    `settings` is the job's section. `cadence` decides when a save is due. `report` hears what has
    become durable, and what has not.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        settings: Checkpoint,
        cadence: SaveCadence,
        report: Say,
        clock: Clock | None = None,
    ) -> None:
        self.checkpointer = checkpointer
        self.settings = settings
        self.cadence = cadence
        self._report = report
        self._clock = clock or Clock()
        self._durable_step: int | None = None
        self._durable_since = self._clock.monotonic()
        self._outage: StoreError | None = None

    def due(self, step: int) -> bool:
        """Return whether the state after `step` should be saved."""
        return self.cadence.due(step, self._clock.monotonic())

    def due_before_evaluating(self) -> bool:
        """Return whether to save before an evaluation, which may run out of memory.

        The store's floor holds here too, except for keep.best: the loss belongs to a checkpoint of
        this very step, and where saves follow each other as fast as the floor lets them, the newest
        checkpoint is nearly always younger. Evaluations are few, and the floor leaves room for
        them.
        """
        return self.settings.keep.best or not self.cadence.too_soon(self._clock.monotonic())

    def begin(self, state: TrainState) -> None:
        """Save `state` in the background. Raises `NotDurable` if the store has refused the save
        before for good, and names the copy on this machine."""
        started = self._clock.monotonic()
        with self._naming_the_copy():
            begun = self.checkpointer.save(
                state.model,
                state.optimizer,
                state.meta,
                state.side_copy,
                state.pieces,
            )
        if begun:
            stats = self.checkpointer.stats
            # Next to a step, a copy takes bandwidth, and each save takes room and traffic. So a
            # copy counts in full, although training does not wait for it.
            copied = self.cadence.stall if stats.copy_seconds is None else stats.copy_seconds
            self.cadence.saved(started, copied, stats.write_seconds)

    def complete(
        self,
        state: TrainState,
        patience: float | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Save `state` and return when it is durable.

        While the store is down, try again for `patience` seconds (`checkpoint.linger`), then raise
        `NotDurable` and name the copy on this machine. Return early if `give_up` says so.
        """
        patience = linger_seconds(self.settings) if patience is None else patience

        def wait(seconds: float) -> None:
            """Sleep, and say so: a log should show why nothing else happens."""
            self.follow(training=False)
            self._report(Note(f"the store can't be reached. Trying again in {duration(seconds)}"))
            self._clock.sleep(seconds)
            if give_up():
                raise _GivenUp

        patiently = Patience(patience, lambda text: None, wait, self._clock.monotonic)
        try:
            patiently(lambda: self._save(state))
        except StoreError as outage:
            raise self._verdict(outage, patience) from outage
        except _GivenUp:
            return
        self.follow()

    def _save(self, state: TrainState) -> None:
        """Save `state` now. Raises the StoreError of an outage, and `NotDurable`."""
        stats = self.checkpointer.stats
        while True:
            with self._naming_the_copy():
                self.checkpointer.wait()
                self.begin(state)
                self.checkpointer.wait()
            if stats.outage is None:
                return
            if not isinstance(stats.outage, UploaderDied):
                raise stats.outage
            # The uploading process was killed, and the next one may live.

    def follow(self, *, training: bool = True) -> bool:
        """Report what has become durable, or that nothing does; return whether something has.

        Called after each step, and while nothing is left to train or training waits (not
        `training`).
        """
        stats = self.checkpointer.stats
        news = stats.durable_step is not None and stats.durable_step != self._durable_step
        if stats.durable_step is not None and news:
            self._durable_step = stats.durable_step
            self._durable_since = self._clock.monotonic()
            self._report(
                CheckpointSaved(
                    stage=self.checkpointer.series.stage,
                    step=stats.durable_step,
                    saved=stats.saved,
                    stall=stats.stall_seconds,
                    copy=stats.copy_seconds,
                    write=stats.write_seconds,
                    interval=None if self.cadence.by_steps_alone else self.cadence.interval,
                )
            )
        if stats.outage != self._outage:
            self._outage = stats.outage
            then = " Training continues, and Pion tries again." if training else ""
            text = f"nothing can be saved now: {stats.outage}{then}"
            self._report(Note("saving works again" if stats.outage is None else text))
        return news

    def too_long_undurable(self) -> bool:
        """Return whether nothing has become durable for `checkpoint.max_undurable` seconds: work
        that may be lost is not worth its price."""
        undurable = self._clock.monotonic() - self._durable_since
        outage = self.checkpointer.stats.outage
        return outage is not None and undurable > self.settings.max_undurable

    def hold(self, state: TrainState, asked: Callable[[], bool]) -> None:
        """Stand still until `state` is durable, or a stop is `asked`."""
        since = duration(self._clock.monotonic() - self._durable_since)
        outage = self.checkpointer.stats.outage
        self._report(Note(f"training pauses: nothing could be saved for {since}. {outage}"))
        self.complete(state, patience=math.inf, give_up=asked)

    @contextlib.contextmanager
    def _naming_the_copy(self) -> Iterator[None]:
        """Raise the verdict on a StoreError in the block, which is not an outage."""
        try:
            yield
        except StoreError as error:
            raise self._verdict(error, patience=0.0) from error

    def _verdict(self, outage: StoreError, patience: float) -> PionError:
        safe = f"Everything committed before is safe in {self.checkpointer.store_url}."
        if patience:
            safe = f"Pion tried for {duration(patience)}. {safe}"
        copy = self.checkpointer.local_copy()
        if copy is None:
            return verdict(outage, NotDurable, safe)
        safe += (
            f" The newest save is on this machine, in {copy}, and a run on this "
            "machine resumes from there."
        )
        return verdict(outage, NotDurable, safe, command="the same command on this machine")


def linger_seconds(settings: Checkpoint) -> float:
    """Return how long to keep trying before giving up: a rented machine takes its disk along."""
    if settings.linger is not None:
        return settings.linger
    return RENTAL_LINGER if launch_id() else 0.0
