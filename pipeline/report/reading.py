"""Read a run from its store, once or again and again, each file of rows once, and thinned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.cost.costs import costs
from pipeline.cost.timeline import processes_of
from pipeline.job import Job
from pipeline.job.stages import TRAINING
from pipeline.report.history import RunHistory
from pipeline.state.find_run import no_such_run
from pipeline.state.head import Head
from pipeline.state.rows.metrics import kept_rows
from pipeline.state.rows.row_types import Unreadable, event_row
from pipeline.state.rows.segments import RowReader
from pipeline.state.rows.thin import ThinReader
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import recorded_job
from pipeline.state.status.run_status import deadline_of, run_status
from pipeline.state.stores.clock import StoreClock

# The deadline of a watched run is computed at every such look.
LOOKS_BETWEEN_DEADLINES = 12


def read_history(run: RunState, job: Job | None = None) -> RunHistory:
    """Read what `run` has done until now; without a `job`, the run's record has it.

    Raises BadInput if there is no such run or it can't be read, and StoreError.
    """
    history = HistoryReader(run, job).read()
    if history is None:
        raise BadInput(no_such_run(run))
    return history


class Replaced(PionError):
    """Another run has the name of the run that was read."""


class HistoryReader:
    """Reads one run, and never writes to its store. Without a `job`, the run's record has it."""

    def __init__(self, state: RunState, job: Job | None = None) -> None:
        self._state = state
        self._unreadable = bad = Unreadable()
        self._events: list[dict[str, Any]] = []
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._event_reader = RowReader(state.store, state.key("events/"), bad, event_row)
        self._readers = {
            stage: ThinReader(state.store, state.key(f"metrics/{stage}/"), bad)
            for stage in TRAINING
        }
        # The last heartbeat under each epoch that is over, and whose epoch it was.
        self._beats: dict[int, float | None] = {}
        self._sessions: dict[int, str] = {}
        self._looks = 0
        self._given, self._job = job, job
        self._job_version: object = None
        self._deadline: tuple[dict[str, Any] | None, list[str]] = None, []
        self._clock = StoreClock(state.clock, state.store)

    def read(self) -> RunHistory | None:
        """Read what is new, and return everything; None if the run is not there.

        Raises Replaced if another run has the name now, and PionError if it can't be read.
        """
        head = self._read_rows()
        if head is None:
            return None
        self._check_same(head)
        now = self._state.clock.now()
        if self._looks % LOOKS_BETWEEN_DEADLINES == 0:
            self._deadline = deadline_of(self._state, head, self._clock.now())
        self._looks += 1
        status = run_status(self._state, head, now)
        spent = costs(
            self._events,
            self._rows,
            head,
            now,
            heartbeats=self._heartbeats(head, status, now),
            # An owner that is known to be dead has stopped at its last sign of life.
            silence=0.0 if status["owner_running"] is False else self._state.silence,
        )
        return RunHistory(
            known_job=self._known_job(head),
            url=self._state.url,
            head=head,
            events=self._events,
            metrics={stage: kept_rows(rows, head, stage) for stage, rows in self._rows.items()},
            costs=spent,
            unreadable=self._unreadable,
            status=status,
            deadline=self._deadline[0],
            deadline_lines=self._deadline[1],
            now=now,
            silence=self._state.silence,
        )

    def _read_rows(self) -> Head | None:
        """Read the new rows, and then HEAD, which says which rows count."""
        self._events = self._event_reader.read()
        self._rows = {stage: reader.read() for stage, reader in self._readers.items()}
        return self._state.read()

    def _check_same(self, head: Head) -> None:
        """Raise Replaced if an epoch has another owner than before, or HEAD went back to an
        earlier epoch: the run is another one."""
        for claim in head.claims:
            before = self._sessions.setdefault(claim.epoch, claim.owner.session)
            if before != claim.owner.session or head.epoch < max(self._sessions):
                raise Replaced(f"{self._state.url} is another run now.")

    def _known_job(self, head: Head) -> Job | None:
        """Return the run's job, which is read again only if HEAD names another.

        The number of steps may depend on the prepared data.
        """
        version = (head.job, "prepare" in head.stages)
        if self._given is None and self._job_version != version:
            try:
                self._job = recorded_job(self._state, head)
            except BadInput:
                self._job = None
            self._job_version = version
        return self._job

    def _heartbeats(self, head: Head, status: Mapping[str, Any], now: float) -> dict[int, float]:
        """Return the time of the last heartbeat of each process, by epoch."""
        last = (process.epochs[-1] for process in processes_of(self._events, head))
        over = (epoch for epoch in last if epoch < head.epoch or head.owner is None)
        new = [epoch for epoch in over if epoch not in self._beats]
        beats = self._state.heartbeats(new)
        self._beats |= {epoch: beats[epoch]["at"] if epoch in beats else None for epoch in new}
        age = status["heartbeat_age"]
        present = {} if age is None else {head.epoch: now - age}
        return {epoch: at for epoch, at in self._beats.items() if at is not None} | present
