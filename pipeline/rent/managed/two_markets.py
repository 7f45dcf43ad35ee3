"""Cancel and request the rentals of a run with a deadline: each request once, whoever is killed.

The store's rental note names the launch that comes next before anything is cancelled for it. If the
watcher ends in between, the next watcher finds no job of that launch, and requests it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pion.errors import BadInput, PionError
from pipeline.rent.deadline.policy import CANCEL_SECONDS, Market
from pipeline.rent.managed.diagnose import Finding
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import NextRental, market_of, new_launch_id
from pipeline.rent.managed.place import Place
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.recorded_task import launch_id_of
from pipeline.rent.managed.seen import is_over_for, rentals_of
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
# How often a machine is given up under one epoch, without any machine owning the run since.
FUTILE_RESTARTS = 3


class TwoMarkets:
    """The rentals of a run on spot and on demand.

    `gave_up` says why nothing more should be rented; empty while there is hope.
    """

    def __init__(self, state: RunState, name: str, provider: Provider) -> None:
        self.gave_up = ""
        self._state, self._name, self._provider = state, name, provider
        self._next_launch: str | None = None
        self._avoid: set[Place] = set()
        self._futile = (0, 0)  # an epoch, and how many machines were given up under it

    def is_next_announced(self, look: Look) -> bool:
        """Return whether the note names a launch of this computer that was not submitted yet.

        Raises BadInput if another computer now rents for the run, and StoreError.
        """
        note, _ = read_rental_note(self._state)
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
        return True

    def announce_next(self, head: Head | None) -> str:
        """Return the id of the next launch, once the store has it. Without a store, return it."""
        launch = self._next_launch or new_launch_id()
        self._next_launch = launch
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
        return launch

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

    def request(
        self,
        look: Look,
        market: Market,
        like: ManagedJob,
        machines: SkyYaml,
        prices: Prices | None,
    ) -> int:
        """Submit a rental like the job `like` on these `machines`; return its managed job.

        A rental that was submitted already is not submitted again. Raises BadInput if SkyPilot
        refuses it, and PionError if SkyPilot may have accepted it.
        """
        launch = self.announce_next(look.head)
        epoch = None if look.head is None else look.head.epoch
        with submitting_alone(self._name):
            jobs = self._provider.managed_jobs(self._name, with_task=True)
            for job in jobs:
                asks = job.live and job.status != "CANCELLING" and market_of(job) is market
                if launch_id_of(job) == launch or (asks and not is_over_for(look, job)):
                    return job.id
            with contextlib.suppress(StoreError):
                clear_handovers(self._state)
            wanted = NextRental(like, machines, launch, epoch, prices, self._avoid)
            try:
                task = self._provider.task_of(wanted)
            except BadInput:
                if not self._avoid:
                    raise
                self._avoid.clear()  # a bad place is better than none
                task = self._provider.task_of(NextRental(like, machines, launch, epoch, prices))
            job_id = self._provider.submit(task, self._name)
        self._next_launch = None
        return job_id

    def restart(
        self, provider: Provider, finding: Finding, job: ManagedJob, head: Head | None
    ) -> list[str]:
        """End a job that makes no progress, and its pods; return what was done, in words.

        What is requested instead is decided at the next look. If that does not help, say in
        `gave_up` that it is over. Raises PionError if SkyPilot fails.
        """
        epoch = head.epoch if head is not None else 0
        futile = self._futile[1] if self._futile[0] == epoch else 0
        done = terminate_each(finding.pods, provider.terminate_pod)
        if futile >= FUTILE_RESTARTS:
            self.gave_up = f"no machine has owned the run after {futile} restarts"
            return [*done, self.gave_up]
        self._futile = (epoch, futile + 1)
        if finding.avoid is not None:
            self._avoid.add(finding.avoid)
        self.announce_next(head)
        if job.live:
            provider.cancel([job.id])
            done.append(f"cancelled managed job {job.id}, to request another machine")
        return done

    def end_all(self, look: Look) -> None:
        """Cancel every rental that is left, and end the note."""
        self.cancel([each.sky.job for each in rentals_of(look) if each.sky.job], wait=False)
        with contextlib.suppress(PionError):  # if the note stays, the next launch needs --force
            note, _ = read_rental_note(self._state)
            if note is not None and note.rented_from == self._provider.my_hash():
                withdraw_rental_note(self._state, note.launch_id)
