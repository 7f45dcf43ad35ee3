"""The work of a rented machine on the runs of a ladder or of a search.

A machine that is rented for one run owns this run. So the store says that the machine is alive,
what it costs, and whether a person asks it to stop. A machine that is rented for many runs owns one
more run, which trains nothing. `pion watch`, `pion rentals`, `pion stop` and `pion status` look at
that run.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pion.errors import BadInput, Fenced, PionError, Stopped
from pipeline.cost.budget import true_price
from pipeline.cost.timeline import ONE_RUN
from pipeline.job import Budget
from pipeline.machine.rented import claim_event, this_machine
from pipeline.state.claim import Claim, claim_run
from pipeline.state.head import RUNS, Head, StageRecord
from pipeline.state.notes.rental_note import over_unless_interrupted
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.owner import Owner, launch_id
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError
from pipeline.state.stores.errors import before_work

# Seconds between two looks at what the heartbeat has found. A look reads nothing from the store.
LOOK_SECONDS = 0.5
# Seconds between two looks at how far the run at work is.
REPORT_SECONDS = 20.0
_REPORTED = ("step", "steps", "loss", "tokens_per_second", "eta")
_KEPT = "Every finished run is kept, and so is every saved step."

Say = Callable[[str], None]


class Work:
    """Runs of a ladder or of a search that this machine does, under a claim of one more run.

    Attributes:
        paid_since: until when another start on this machine has paid for it, in Unix seconds; None
            if there was none.
        interrupt: asks the run that is at work to save and end; from any thread.
    """

    def __init__(self, claim: Claim, events: EventLog, paid_since: float | None) -> None:
        self.paid_since = paid_since
        self.interrupt: Callable[[], None] = lambda: None
        self._claim, self._events = claim, events
        self._run: str | None = None
        self._over = threading.Event()

    @contextmanager
    def on(self, run: str) -> Iterator[None]:
        """Record that a run is at work in the block. Raises as `obey`, and StoreError."""
        self.obey()
        self._record({"run": run})
        self._run, began = run, time.monotonic()
        try:
            yield
        finally:
            self._run = None
            self._events.append("phase", name=ONE_RUN, seconds=time.monotonic() - began)
            with contextlib.suppress(StoreError):  # the events are kept for the next flush
                self._events.flush()

    def obey(self) -> None:
        """Raise Stopped if a person asks this machine to stop, and Fenced if another one does its
        work now."""
        self._claim.check()
        request = self._claim.heartbeat.stop_request
        if request is not None:
            raise Stopped(f"Stopped by request ({request}). {_KEPT}")

    def finish(self) -> None:
        """Record that nothing is left to do. Raises Fenced and StoreError."""
        self._record({"finished": True})

    def begin(self) -> None:
        """Show life from now on, and look for requests and other owners."""
        self._claim.heartbeat.start()
        threading.Thread(target=self._watch, name="at work", daemon=True).start()

    def end(self) -> None:
        """Release the claim. If that fails, the next machine of the launch takes over."""
        self._over.set()
        with contextlib.suppress(PionError):
            self._claim.release()

    def _record(self, result: Mapping[str, Any]) -> None:
        record = StageRecord("", self._claim.state.clock.now(), None, result)
        self._claim.commit(lambda head: head.with_stage(RUNS, record))

    def _watch(self) -> None:
        reported = -math.inf
        while not self._over.wait(LOOK_SECONDS):
            try:
                self.obey()
            except (Stopped, Fenced):
                self.interrupt()
            if time.monotonic() - reported >= REPORT_SECONDS:
                self._claim.heartbeat.report(**_reached(self._claim, self._run))
                reported = time.monotonic()


def _reached(claim: Claim, run: str | None) -> dict[str, Any]:
    """Return what the owner of the run at work last reported, as far as the store says it."""
    if run is None or claim.store.commits:
        return {}
    with contextlib.suppress(PionError):
        state = RunState(claim.store, run)
        head = state.read()
        beat = None if head is None or head.owner is None else state.heartbeat(head.epoch)
        status: Mapping[str, Any] = {} if beat is None else beat.get("status") or {}
        return {"stage": run, **{key: status[key] for key in _REPORTED if key in status}}
    return {}


@contextmanager
def at_work(state: RunState, budget: Budget, say: Say) -> Iterator[Work | None]:
    """Own the run `state` in the block, if a manager of rented machines started this process; else
    yield None.

    A store that fails is then an interruption. Raises BadInput if another run has this name,
    Stopped if a person asked this rental to stop or the machine costs too much, and Fenced.
    """
    launch = launch_id()
    if launch is None:
        yield None
        return
    with over_unless_interrupted(state, launch), before_work(_KEPT, managed=True):
        work = _claimed(state, launch, budget, say)
        work.begin()
        try:
            yield work
        finally:
            work.end()


def _claimed(state: RunState, launch: str, budget: Budget, say: Say) -> Work:
    began, me = time.time(), Owner.me()
    refuse_ordinary(state, state.read())
    request = pending_stop(state, launch_id=launch)
    if request is not None:
        raise Stopped(
            f"Stopped by request ({request.describe()}). Nothing was started. To continue, rent "
            "again with the same command. This clears the request."
        )
    price = true_price(budget, say)
    claim = claim_run(state, me, unattended=True, price=price, say=say)
    events = EventLog(state.store, state.name, claim.epoch)
    about = claim_event(
        this_machine(began), price, session=me.session, started=me.started_at, reason=claim.reason
    )
    events.append(about.pop("event"), **about)
    with contextlib.suppress(StoreError):
        events.flush()
    before = claim.before
    again = bool(before.claims) and me.same_machine(before.claims[0].owner)
    return Work(claim, events, before.spent.until if again else None)


def refuse_ordinary(state: RunState, head: Head | None) -> None:
    """Raise BadInput if `head` is that of a run which trains."""
    if head is None or head.runs is not None:
        return
    if head.job is not None or head.stages or head.checkpoints:
        raise BadInput(
            f"{state.url} is an ordinary run, and a rental of this ladder or search needs its "
            "name. Nothing was started. Give the ladder or search another name: name=NAME."
        )
