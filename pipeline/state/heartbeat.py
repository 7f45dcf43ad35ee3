"""The owner's sign of life: write `owner/<epoch>.json` every few seconds.

Each beat also looks for a new owner of the run and for requests to stop. A heartbeat never raises
an error, because a store that is down must not end the run.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.state.head import Head
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.owner import Owner
from pipeline.state.record_json import finite_json
from pipeline.state.run_state import RunState, heartbeat_path
from pipeline.state.stores import Missing

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0


class Heartbeat:
    """The heartbeat of `owner`, who claimed the run under `epoch`.

    `on_taken_over` is called with HEAD when another process owns the run (None: the run was
    deleted).

    Attributes:
        stop_request: who asked for a stop and when, as of the last beat.
        lent: whether a worker of this session owns the run instead, as of the last beat.
    """

    def __init__(
        self,
        state: RunState,
        epoch: int,
        owner: Owner,
        on_taken_over: Callable[[Head | None], None],
    ) -> None:
        self._state, self._epoch, self._owner = state, epoch, owner
        self._on_taken_over = on_taken_over
        self.stop_request: str | None = None
        self.lent = False
        self._status: Mapping[str, Any] = {}
        self._beats = 0
        self._seen: bytes | None = None  # the beat found or written last
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def start(self, seconds: float = HEARTBEAT_SECONDS) -> None:
        """Beat every `seconds` in a thread. Do nothing if the thread already runs."""
        if self._thread is None:
            self._stopped.clear()
            thread = threading.Thread(
                target=self._run, args=(seconds,), name="heartbeat", daemon=True
            )
            thread.start()  # fails if the user may start no more threads
            self._thread = thread

    def stop(self) -> None:
        """Start no further beat, and block until a beat in progress has ended."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether the heartbeat looks for new owners and requests."""
        return self._thread is not None

    def report(self, **status: Any) -> None:
        """Send what `pion status` shows (stage, step, loss, …) with the next beat."""
        self._status = {**status, "at": self._state.clock.now()}

    def beat(self) -> None:
        """Look at HEAD and the requests, and write the sign of life. Raises `StoreError`."""
        state = self._state
        present, _ = state.read_for_owner()
        if present is None or present.session != self._owner.session:
            self._on_taken_over(present)
            return
        # Set `lent` before reading the request: if the run is lent, the worker obeys the request.
        self.lent = present.epoch != self._epoch
        request = pending_stop(state, _log.warning, launch_id=self._owner.launch_id)
        self.stop_request = request.describe() if request else None
        if state.store.commits:
            return  # the store limits commits, so commits are the sign of life
        key = state.key(heartbeat_path(present.epoch))
        if self.lent and self._another_beats(key):
            return  # the worker that owns the run writes the heartbeat itself
        self._beats += 1
        beat = {
            "epoch": present.epoch,
            "owner": dataclasses.asdict(present.owner) if present.owner else None,
            "at": state.clock.now(),
            "beat": self._beats,
            "status": dict(self._status),
        }
        self._seen = (finite_json(beat, indent=1) + "\n").encode()
        state.store.write(key, self._seen)

    def _another_beats(self, key: str) -> bool:
        """Return whether another process has changed the heartbeat since the last look."""
        try:
            beat = self._state.store.read(key)
        except Missing:
            return False  # the worker is still starting, or just restarted
        changed, self._seen = beat != self._seen, beat
        return changed

    def _run(self, seconds: float) -> None:
        while True:
            try:
                self.beat()
            except Exception as error:
                _log.warning("No heartbeat: %s", error)
            if self._stopped.wait(seconds):
                return
