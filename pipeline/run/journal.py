"""Shows what a `pion run` does, and records what its start-up cost as events of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

from pion.errors import Fenced, PionError
from pipeline.console.display import Display
from pipeline.console.formats import printable
from pipeline.console.masking import masked
from pipeline.console.messages import CheckpointSaved, Note, Phase, Shown, StageState, Step
from pipeline.cost.timeline import WAITED
from pipeline.machine.no_room_or_permission import refusal
from pipeline.machine.rented import END, PAID_TO_FIRST_STEP, claim_event, this_machine
from pipeline.run.inputs import Start
from pipeline.state.claim import Claim
from pipeline.state.owner import differences
from pipeline.state.rows.metrics import EventLog
from pipeline.state.rows.row_types import LONGEST_MESSAGE
from pipeline.state.stores import StoreError
from pipeline.training.watchdog import Watchdog

# The number of the first save whose time is typical. Earlier saves of a process also allocate
# memory and open connections.
TYPICAL_SAVE = 3
# A wait for another owner that is longer than these seconds is reported.
WORTH_NOTING = 1.0


class Journal:
    """What one start of `pion run` shows and records, under the epoch of `claim`.

    The driver may write events of that epoch while a worker owns the run.
    """

    def __init__(self, start: Start, claim: Claim, display: Display) -> None:
        self._start, self._claim, self._display = start, claim, display
        self._machine = this_machine(start.at)
        self._events = EventLog(start.run.store, start.run.name, claim.epoch)
        # The stage at work, and its newest step if it trains.
        self._place: dict[str, Any] = {}
        # Training has its own watchdog, which ends a hang. Other work may rightly be silent for
        # long, so this only tells.
        self.watchdog = Watchdog(self._tell_hang, missed="message")

    def introduce(self, waited: float) -> None:
        """Show and record where the run is now, what the start-up cost so far, and other code.

        `waited` is how many seconds this process waited for another owner.
        """
        owner, before = self._start.owner, self._claim.before
        about = claim_event(
            self._machine,
            self._start.price,
            session=owner.session,
            started=owner.started_at,
            reason=self._claim.reason,
        )
        about["job"] = masked(self._start.options.job_path)[:LONGEST_MESSAGE]
        self._events.append(about.pop("event"), **about)
        if self._machine is not None and self._machine.phases:
            parts = dict(self._machine.phases)
            self.say(Phase("boot", sum(parts.values()), parts=parts))
        if waited >= WORTH_NOTING:
            self.say(Phase(WAITED, waited))
        changes = differences(before.claims[0].owner, owner) if before.claims else []
        for change in changes:
            self.note(f"changed since the last start of this run: {change}")
        if changes:
            self._events.append("changed", changes=changes)

    @contextlib.contextmanager
    def keeping_end(self) -> Iterator[None]:
        """Record the error with which this start ends, for those who read the store.

        A process that lost the run, or can't reach its store, writes nothing more.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Fenced) and not isinstance(error.__cause__, StoreError):
                known = error if isinstance(error, PionError) else refusal(error)
                bug = f"a bug in Pion: {type(error).__name__}: {error}. What was committed is safe"
                words = printable(masked(str(known or bug)))[:LONGEST_MESSAGE]
                code = 1 if known is None else known.exit_code
                self._events.append(END, code=code, message=words, **self._place)
                self._flush_if_possible()
            raise

    def note(self, text: str) -> None:
        """Show a line."""
        self.say(Note(text))

    def say(self, message: Shown) -> None:
        """Show a message, and record what the start-up cost by phase and what a save takes."""
        if isinstance(message, Step):
            message = dataclasses.replace(message, dollars_per_hour=self._start.price)
            self._place = {"stage": message.stage, "step": message.step}
        elif isinstance(message, StageState) and (
            # At the start, the plan names all stages. The first that is left begins.
            message.state == "started" or (message.state != "done" and not self._place)
        ):
            self._place = {"stage": message.stage}
        self.watchdog.progress()
        self._display.say(message)
        if isinstance(message, Phase):
            self._keep_phase(message)
            if message.total:
                self._say_paid_to_first_step(message.seconds)
                # In a thread: training neither waits for the store nor fails with it.
                threading.Thread(target=self._flush_if_possible, daemon=True).start()
        elif isinstance(message, CheckpointSaved):
            self._start.preemption_stop.saved(message.stall, message.write)
            if message.saved == TYPICAL_SAVE:
                took = {"stall": message.stall, "copy": message.copy, "write": message.write}
                self._events.append("saved", stage=message.stage, step=message.step, **took)

    def _tell_hang(self, text: str) -> None:
        self._display.say(Note(f"warning: this process may hang, and goes on. {text}"))

    def flush(self) -> None:
        """Write the events recorded so far. Raises StoreError."""
        self._events.flush()

    def _keep_phase(self, phase: Phase) -> None:
        """Record the phase as an event, without an empty `total` or `parts`."""
        total = {"total": True} if phase.total else {}
        parts = {"parts": phase.parts} if phase.parts is not None else {}
        self._events.append("phase", name=phase.name, seconds=phase.seconds, **total, **parts)

    def _say_paid_to_first_step(self, seconds: float) -> None:
        """Show `seconds` of `pion run` plus the paid seconds of the rented machine before it."""
        if self._machine is None:
            return
        parts = {**self._machine.phases, "pion run": seconds}
        paid = Phase(PAID_TO_FIRST_STEP, sum(parts.values()), parts=parts)
        self._display.say(paid)
        self._keep_phase(paid)

    def _flush_if_possible(self) -> None:
        with contextlib.suppress(StoreError):  # the events are kept for the next flush
            self.flush()
