"""Cancel and request the rentals of a run: each request once, whoever is killed.

With a deadline, each request gets a new launch id. The store's rental note names the launch before
anything is cancelled for it. If the watcher ends in between, the next watcher finds no job of that
launch, and requests it.

Without a deadline, the task of the last job is submitted again. It belongs to the same launch, so
it may take over the run at once. Only the watcher that has begun this can complete it.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Sequence
from dataclasses import replace

from pion.errors import BadInput, PionError
from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.keep.rental_state import (
    FORGET_SECONDS,
    fails_to_start,
    is_over_for,
    rentals_of,
)
from pipeline.rent.managed.look.diagnose import Finding
from pipeline.rent.managed.look.look import Look
from pipeline.rent.managed.provider.jobs import ManagedJob, Place
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import (
    NextRental,
    launch_id_of,
    market_of,
)
from pipeline.rent.managed.request import note_of
from pipeline.state.head import Head
from pipeline.state.notes.rental_note import (
    read_rental_note,
    withdraw_rental_note,
    write_rental_note,
)
from pipeline.state.notes.stop_requests import clear_handovers
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, StoreError

# How often a machine of one market is given up under one epoch, without owning the run.
FUTILE_RESTARTS = 3


class Renter:
    """The rentals of a run.

    Attributes:
        gave_up: why nothing more should be rented; empty while there is hope.
        announced: the launch that was announced, by this watcher or an earlier one, and not
            submitted yet; None if there is none.
        asked_at: when a launch was announced, in Unix seconds, that may be submitted by now,
            although SkyPilot lists no job of it; None if there is none.
        given_up: the numbers of the jobs that made no progress, and are cancelled for that.
        replacing: the given-up job whose task is to be submitted again, and was not yet.
    """

    def __init__(self, state: RunState, name: str, provider: Provider) -> None:
        self.gave_up = ""
        self.announced: str | None = None
        self.asked_at: float | None = None
        self.given_up: set[int] = set()
        self.replacing: ManagedJob | None = None
        self._unasked: str | None = None  # announced here, and certainly not submitted
        self._state, self._name, self._provider = state, name, provider
        self._avoid: set[Place] = set()
        # By market: an epoch, and how many machines were given up under it.
        self._futile: dict[Market | None, tuple[int, int]] = {}
        self._left_alone: dict[Market | None, float] = {}

    @property
    def next_launch(self) -> str:
        """The id of the launch that comes next."""
        return self.announced or uuid.uuid4().hex

    def is_next_announced(self, look: Look) -> bool:
        """Return whether the note names a launch of this computer that was not submitted yet.

        Raises BadInput if another computer now rents for the run, and StoreError.
        """
        note, _ = read_rental_note(self._state)
        self.asked_at = None
        if note is None:
            return self.announced is not None
        if note.rented_from != self._provider.my_hash():
            raise BadInput(
                f"{note.host} rents for {self._state.name} now, so nothing is requested or "
                f"cancelled from here. Watch the run there: pion watch {self._state.url}"
            )
        if any(launch_id_of(job) == note.launch_id for job in look.jobs):
            if self.announced == note.launch_id:
                self.announced = None
            return False
        self.announced = note.launch_id
        self.asked_at = None if note.launch_id == self._unasked else note.at
        return True

    def prepare(self, wanted: NextRental, finding: Finding | None) -> NextRental:
        """Return what is wanted with its task. It replaces a job that `finding` gives up, if there
        is one.

        Nothing is announced yet. Raises BadInput if it can't be submitted from here.
        """
        choices = [self._avoid, set()]
        if finding is not None and finding.avoid is not None:
            # A bad place is better than none if, without a restart, nothing would end the pod.
            choices = [self._avoid | {finding.avoid}, *(choices if finding.pods else ())]
        why_not = None
        for avoid in choices:
            prepared = replace(wanted, avoid=avoid)
            try:
                prepared = replace(prepared, task=self._provider.task_of(prepared))
            except BadInput as error:
                why_not = why_not or error
            else:
                self._avoid = avoid
                return prepared
        assert why_not is not None
        raise why_not

    def announce(self, head: Head | None, launch: str | None) -> None:
        """Say in the store that this launch comes next. If the store is down, say nothing."""
        if launch is None:
            return
        if self.announced != launch:
            self.announced = self._unasked = launch
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

    def cancel(
        self, jobs: Sequence[ManagedJob], *, wait: float = 0.0, must_end: bool = False
    ) -> Sequence[ManagedJob]:
        """Cancel these jobs, and wait so many seconds until they have ended.

        Return what SkyPilot then says of them. Raises PionError if they `must_end` and have not.
        """
        ids = [job.id for job in jobs if job.live]
        if standing := [job.id for job in jobs if job.live and job.status != "CANCELLING"]:
            self._provider.cancel(standing)
        if not (ids and wait):
            return ()
        jobs_left = self._provider.wait_for_end(self._name, ids, self._state.clock, wait)
        living = " and ".join(str(job.id) for job in jobs_left if job.live)
        if living and must_end:
            raise PionError(f"SkyPilot has not cancelled managed job {living} in {wait:.0f} s.")
        return jobs_left

    def submit(self, look: Look, following: NextRental) -> int:
        """Announce and submit what follows; return its managed job.

        What was submitted already is not submitted again. Raises BadInput if SkyPilot refuses it,
        and PionError if SkyPilot may have accepted it.
        """
        launch = following.launch_id
        self.announce(look.head, launch)
        jobs = self._provider.managed_jobs(self._name, with_task=True)
        job_id = next((job.id for job in jobs if self._is_it(job, following, look)), None)
        if job_id is None:
            if launch is not None:
                with contextlib.suppress(StoreError):
                    clear_handovers(self._state)
            self._unasked = None
            job_id = self._provider.submit(following.task, self._name)
            self.announced = None
        self.replacing = None
        return job_id

    def _is_it(self, job: ManagedJob, following: NextRental, look: Look) -> bool:
        """Return whether a job is what would be submitted, or stands in its place."""
        if following.launch_id is not None and launch_id_of(job) == following.launch_id:
            return True
        stands = job.live and job.status != "CANCELLING" and job.id not in self.given_up
        asks = following.market in (None, market_of(job))
        return stands and asks and not is_over_for(look, job)

    def restarts(self, job: ManagedJob, look: Look) -> int:
        """Return how many jobs like this one were given up since a machine has owned the run."""
        epoch = _epoch(look)
        at, times = self._futile.get(market_of(job), (epoch, 0))
        return times if at == epoch else 0

    def give_up(self, job: ManagedJob, look: Look) -> None:
        """Count a job that makes no progress, and take it out of what the run has."""
        self._futile[market_of(job)] = (_epoch(look), self.restarts(job, look) + 1)
        self.given_up.add(job.id)

    def avoid(self, place: Place) -> None:
        """Avoid a place in what is requested later."""
        self._avoid = self._avoid | {place}

    def leave_alone(self, market: Market | None) -> None:
        """Request no machine on that market for a while. Its given-up jobs are forgotten."""
        self._left_alone[market] = self._state.clock.now() + FORGET_SECONDS
        self._futile.pop(market, None)

    def is_left_alone(self, look: Look, market: Market) -> bool:
        """Return whether no machine is to be requested on that market for a while."""
        now = self._state.clock.now()
        until = self._left_alone.get(market, -math.inf)
        return now < until or fails_to_start(look, market, now)

    def end_all(self, look: Look) -> None:
        """Cancel every rental that is left, and end the note."""
        self.cancel([each.job for each in rentals_of(look)])
        with contextlib.suppress(PionError):  # if the note stays, the next launch needs --force
            note, _ = read_rental_note(self._state)
            if note is not None and note.rented_from == self._provider.my_hash():
                withdraw_rental_note(self._state, note.launch_id)


def _epoch(look: Look) -> int:
    return look.head.epoch if look.head is not None else 0
