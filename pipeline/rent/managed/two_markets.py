"""Cancel and request the rentals of a run with a deadline: each request once, whoever is killed.

The store's rental note names the launch that comes next before anything is cancelled for it. If the
watcher ends in between, the next watcher finds no job of that launch, and requests it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pion.errors import BadInput, PionError
from pipeline.rent.deadline.policy import CANCEL_SECONDS, Market
from pipeline.rent.managed.diagnose import Finding
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import NextRental, market_of, new_launch_id
from pipeline.rent.managed.place import Place
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.recorded_task import launch_id_of
from pipeline.rent.managed.rental_end import FORGET_SECONDS, fails_to_start
from pipeline.rent.managed.seen import is_over_for, owned_by_another, rentals_of
from pipeline.rent.managed.submission import note_of, submitting_alone
from pipeline.rent.managed.terminate_pods import terminate_each
from pipeline.rent.plan.prices import Prices
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.records import Head
from pipeline.state.rental_note import read_rental_note, withdraw_rental_note, write_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import clear_handovers
from pipeline.state.stores import Conflict, StoreError

POLL_SECONDS = 5.0
# How often a machine of one market is given up under one epoch, without owning the run.
FUTILE_RESTARTS = 3


class Next(NamedTuple):
    """A launch that is ready to be submitted: its id, and its task for SkyPilot."""

    launch_id: str
    task: Any


class TwoMarkets:
    """The rentals of a run on spot and on demand.

    Attributes:
        gave_up: why nothing more should be rented; empty while there is hope.
        asked_at: when a launch was announced, in Unix seconds, that may be submitted by now,
            although SkyPilot lists no job of it; None if there is none.
    """

    def __init__(self, state: RunState, name: str, provider: Provider) -> None:
        self.gave_up = ""
        self.asked_at: float | None = None
        self._unasked: str | None = None  # announced here, and certainly not submitted
        self._state, self._name, self._provider = state, name, provider
        self._next_launch: str | None = None
        self._avoid: set[Place] = set()
        # By market: an epoch, and how many machines were given up under it.
        self._futile: dict[Market | None, tuple[int, int]] = {}
        self._ended: set[int] = set()
        self._left_alone: dict[Market | None, float] = {}

    def is_next_announced(self, look: Look) -> bool:
        """Return whether the note names a launch of this computer that was not submitted yet.

        Raises BadInput if another computer now rents for the run, and StoreError.
        """
        note, _ = read_rental_note(self._state)
        self.asked_at = None
        if note is None:
            return self._next_launch is not None
        if note.rented_from != self._provider.my_hash():
            raise BadInput(
                f"{note.host} rents for {self._state.name} now, so nothing is requested or "
                f"cancelled from here. Watch the run there: pion watch {self._state.url}"
            )
        if any(launch_id_of(job) == note.launch_id for job in look.jobs):
            if self._next_launch == note.launch_id:
                self._next_launch = None
            return False
        self._next_launch = note.launch_id
        self.asked_at = None if note.launch_id == self._unasked else note.at
        return True

    def prepare(
        self,
        look: Look,
        like: ManagedJob,
        machines: SkyYaml,
        prices: Prices | None,
    ) -> Next:
        """Return the next launch: a rental like the job `like` on these `machines`.

        Nothing is announced yet. Raises BadInput if it can't be submitted from here.
        """
        launch = self._next_launch or new_launch_id()
        epoch = None if look.head is None else look.head.epoch
        wanted = NextRental(like, machines, launch, epoch, prices, self._avoid)
        try:
            return Next(launch, self._provider.task_of(wanted))
        except BadInput:
            if not self._avoid:
                raise
        self._avoid.clear()  # a bad place is better than none
        wanted = NextRental(like, machines, launch, epoch, prices)
        return Next(launch, self._provider.task_of(wanted))

    def announce(self, head: Head | None, launch: str) -> None:
        """Say in the store that this launch comes next. If the store is down, say nothing."""
        if self._next_launch != launch:
            self._next_launch = self._unasked = launch
        with contextlib.suppress(StoreError):
            note, version = read_rental_note(self._state)
            if note is None or note.launch_id != launch:
                me = self._provider.my_hash()
                mine = note_of(self._state, head, launch_id=launch, rented_from=me)
                try:
                    write_rental_note(self._state, mine, version)
                except Conflict as error:
                    raise PionError(f"another process rents for {self._state.name}") from error
                self._state.store.flush()

    def cancel(self, jobs: Sequence[ManagedJob], *, wait: bool) -> None:
        """Cancel these jobs; `wait` up to CANCEL_SECONDS until they have ended."""
        ids = [job.id for job in jobs if job.live]
        if not ids:
            return
        self._provider.cancel(ids)
        clock = self._state.clock
        end = clock.monotonic() + CANCEL_SECONDS
        while wait and clock.monotonic() < end:
            living = [job.id for job in self._provider.managed_jobs(self._name) if job.live]
            if not set(ids) & set(living):
                return
            clock.sleep(POLL_SECONDS)

    def submit(self, look: Look, market: Market, following: Next) -> int:
        """Announce and submit a rental on that market; return its managed job.

        A rental that was submitted already is not submitted again. Raises BadInput if SkyPilot
        refuses it, and PionError if SkyPilot may have accepted it.
        """
        launch = following.launch_id
        self.announce(look.head, launch)
        with submitting_alone(self._name):
            jobs = self._provider.managed_jobs(self._name, with_task=True)
            for job in jobs:
                asks = job.live and job.status != "CANCELLING" and market_of(job) is market
                if launch_id_of(job) == launch or (asks and not is_over_for(look, job)):
                    return job.id
            with contextlib.suppress(StoreError):
                clear_handovers(self._state)
            self._unasked = None
            job_id = self._provider.submit(following.task, self._name)
        self._next_launch = None
        return job_id

    def restart(
        self, provider: Provider, finding: Finding, job: ManagedJob, look: Look
    ) -> list[str]:
        """End a job that makes no progress, and its pods; return what was done, in words.

        What is requested instead is decided at the next look. A market on which that does not help
        is left alone. If nothing is left to try, say in `gave_up` that it is over. Raises PionError
        if SkyPilot fails.
        """
        done = terminate_each(finding.pods, provider.terminate_pod)
        if job.id in self._ended:
            return done
        market, epoch = market_of(job), look.head.epoch if look.head is not None else 0
        owned = owned_by_another(look, market)
        at, before = self._futile.get(market, (epoch, 0))
        futile = before + 1 if at == epoch else 1
        no_use = futile > FUTILE_RESTARTS or finding.what == "it never starts"
        if no_use and market is not Market.SPOT and not owned:
            self.gave_up = "no machine on demand starts the run, so nothing more is requested"
            return [*done, self.gave_up]
        if no_use:
            self._left_alone[market] = self._state.clock.now() + FORGET_SECONDS
            futile = 0
        if finding.avoid is not None:
            self._avoid.add(finding.avoid)
        if not owned:  # otherwise the owner's job says whether the rental is over
            self.announce(look.head, self._next_launch or new_launch_id())
        if job.live:
            provider.cancel([job.id])
            done.append(f"cancelled managed job {job.id}, to request another machine")
        self._ended.add(job.id)
        self._futile[market] = (epoch, futile)
        return done

    def is_left_alone(self, look: Look, market: Market) -> bool:
        """Return whether no machine is to be requested on that market for a while."""
        now = self._state.clock.now()
        until = self._left_alone.get(market, -math.inf)
        return now < until or fails_to_start(look, market, now)

    def end_all(self, look: Look) -> None:
        """Cancel every rental that is left, and end the note."""
        self.cancel([each.sky.job for each in rentals_of(look) if each.sky.job], wait=False)
        with contextlib.suppress(PionError):  # if the note stays, the next launch needs --force
            note, _ = read_rental_note(self._state)
            if note is not None and note.rented_from == self._provider.my_hash():
                withdraw_rental_note(self._state, note.launch_id)
