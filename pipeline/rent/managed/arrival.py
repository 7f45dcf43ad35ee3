"""Wait until the new machine of a hop has taken over the run, or call the hop off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import PionError
from pipeline.console.formats import duration
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.say import say_now
from pipeline.state.metrics import read_events
from pipeline.state.records import Head
from pipeline.state.rental_note import RentalNote, withdraw_rental_note
from pipeline.state.run_state import COMMIT_SILENCE_SECONDS, RunState
from pipeline.state.run_status import is_finished
from pipeline.state.stop_requests import withdraw_handover
from pipeline.state.stores import StoreError

POLL_SECONDS = 5.0
# Seconds that the new machine gets, from the request until it owns the run. On a store where only
# commits are a sign of life, it may wait COMMIT_SILENCE_SECONDS more for a silent owner.
ARRIVE_SECONDS = 1800.0
RECEIPT_SECONDS = 600.0


@dataclass(frozen=True)
class Move:
    """A hop whose new machine was requested.

    Attributes:
        name: the name of both rentals.
        launch_id: the id of the new launch.
        new: the managed job of the new launch.
        old: the managed jobs that were live when `new` was submitted.
        before: the note of the rental that is replaced.
    """

    state: RunState
    name: str
    launch_id: str
    new: int
    old: Sequence[ManagedJob]
    before: RentalNote | None
    provider: Provider

    def has_arrived(self, head: Head) -> bool:
        """Return whether a process of the new launch owns the run."""
        return head.owner is not None and head.owner.launch_id == self.launch_id


def wait_for_arrival(move: Move) -> bool:
    """Block until the new launch owns the run; return False if the run was finished before that.

    Raises PionError if the new launch ends or takes too long.
    """
    clock, state = move.state.clock, move.state
    patience = ARRIVE_SECONDS + (COMMIT_SILENCE_SECONDS if state.store.commits else 0.0)
    end = clock.monotonic() + patience
    told = ""
    while True:
        try:
            head = state.read()
            jobs = move.provider.managed_jobs(move.name)
        except PionError as error:  # ask again later
            words = f"Pion can't tell the state at the moment: {error}"
        else:
            arrived = _arrived(move, head)
            if arrived is not None:
                return arrived
            words = _job_in_words(move, jobs)
        if words != told:
            say_now(words)
        told = words
        if clock.monotonic() >= end:
            move.provider.cancel([move.new])
            raise PionError(
                f"managed job {move.new} did not take over the run within {duration(patience)} "
                f"({words}), so Pion cancelled it."
            )
        clock.sleep(POLL_SECONDS)


def _arrived(move: Move, head: Head | None) -> bool | None:
    """Return True if the run has moved, False if it was finished before, None if neither yet."""
    if head is None:
        return None
    if head.owner is not None and move.has_arrived(head):
        say_now(f"{head.owner.describe()} has taken over the run (epoch {head.epoch})")
        return True
    if head.owner is None and is_finished(move.state, head):
        move.provider.cancel([move.new])
        say_now(f"{move.state.name} had already finished. Pion cancelled managed job {move.new}")
        return False
    return None


def _job_in_words(move: Move, jobs: Sequence[ManagedJob]) -> str:
    """Describe the new managed job. Raises PionError if it has ended."""
    job = next((known for known in jobs if known.id == move.new), None)
    if job is None or not job.live:
        status = f"{job.status}: {job.failure}" if job else "unknown to SkyPilot"
        raise PionError(
            f"managed job {move.new} stopped before it took over the run ({status}). Its output: "
            f"sky jobs logs {move.new}."
        )
    return f"managed job {job.id}: {job.status}{f' on {job.place}' if job.place else ''}"


def call_off(move: Move) -> str:
    """Withdraw the request to hand over; return what the old owner does now, in words."""
    state = move.state
    again = (
        f"Committed work is safe. To see who owns the run, run `pion status {state.url}`. Then run "
        "`pion launch` again. If `pion launch` refuses, add --force."
    )
    try:
        asked = withdraw_handover(state, move.launch_id)
        withdraw_rental_note(state, move.launch_id, move.before)
        head = state.read()
    except StoreError as error:
        return f"It is unknown whether the old machine continues ({error}). {again}"
    if head is None or head.owner is None:
        return f"No process owns {state.name} now. {again}"
    if asked:
        return (
            f"{head.owner.describe()} had been asked to hand over {state.name}. Pion withdrew the "
            "request. If the owner has already read the request, the owner will stop within a "
            f"minute. {again}"
        )
    return f"{head.owner.describe()} still owns {state.name}, and continues."


def read_receipt(move: Move) -> list[str]:
    """Return the receipt that the new machine wrote when it began to train; empty if it takes too
    long.

    Raises StoreError.
    """
    clock, state = move.state.clock, move.state
    end = clock.monotonic() + RECEIPT_SECONDS
    while clock.monotonic() < end:
        head = state.read()
        if head is None or not move.has_arrived(head):
            return []  # done, or taken over again
        mine = {claim.epoch for claim in head.claims if claim.owner.launch_id == move.launch_id}
        for event in read_events(state.store, state.name):
            if event["event"] == "hop" and event["epoch"] in mine:
                return [str(line) for line in event["receipt"]]
        clock.sleep(POLL_SECONDS)
    return []
