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
# From renting until the new machine owns the run; after that, the new machine is given up. On a
# store where only commits are a sign of life, it may have to wait COMMIT_SILENCE_SECONDS more for
# an owner that is silent.
ARRIVE_SECONDS = 1800.0
RECEIPT_SECONDS = 600.0


@dataclass(frozen=True)
class Move:
    """A hop whose new machine has been asked for.

    Attributes:
        name: of the rental, old and new.
        launch_id: of the new launch.
        new: its managed job.
        old: the managed jobs that lived when it was submitted.
        before: the note of the rental that it replaces.
    """

    state: RunState
    name: str
    launch_id: str
    new: int
    old: Sequence[ManagedJob]
    before: RentalNote | None
    provider: Provider

    def has_arrived(self, head: Head) -> bool:
        """Whether a process of the new launch owns the run."""
        return head.owner is not None and head.owner.launch_id == self.launch_id


def wait_for_arrival(move: Move) -> bool:
    """Block until the new launch owns the run; return False if the run was finished before.

    Raises PionError if the new launch never will.
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
            words = f"can't tell at the moment: {error}"
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
                f"managed job {move.new} has not taken over the run in {duration(patience)} "
                f"({words}), and is cancelled."
            )
        clock.sleep(POLL_SECONDS)


def _arrived(move: Move, head: Head | None) -> bool | None:
    """Return whether the run has moved, or was finished before; None while neither is so."""
    if head is None:
        return None
    if head.owner is not None and move.has_arrived(head):
        say_now(f"{head.owner.describe()} has taken over the run (epoch {head.epoch})")
        return True
    if head.owner is None and is_finished(move.state, head):
        move.provider.cancel([move.new])
        say_now(f"{move.state.name} was finished before; managed job {move.new} is cancelled")
        return False
    return None


def _job_in_words(move: Move, jobs: Sequence[ManagedJob]) -> str:
    """Return what the new managed job does. Raises PionError if it has ended."""
    job = next((known for known in jobs if known.id == move.new), None)
    if job is None or not job.live:
        status = f"{job.status}: {job.failure}" if job else "unknown to SkyPilot"
        raise PionError(
            f"managed job {move.new} ended before it took over the run ({status}). Its output: sky "
            f"jobs logs {move.new}."
        )
    return f"managed job {job.id}: {job.status}{f' on {job.place}' if job.place else ''}"


def call_off(move: Move) -> str:
    """Take back what the new machine asked of the old owner; return what became of the owner."""
    state = move.state
    again = (
        f"what is committed is safe: see pion status {state.url}, and pion launch it again (with "
        "--force, if that is refused)"
    )
    try:
        asked = withdraw_handover(state, move.launch_id)
        withdraw_rental_note(state, move.launch_id, move.before)
        head = state.read()
    except StoreError as error:
        return f"Nobody can tell whether the old machine continues ({error}); {again}."
    if head is None or head.owner is None:
        return f"Nobody owns {state.name} now; {again}."
    if asked:
        return (
            f"{head.owner.describe()} had already been asked to hand over {state.name}. That "
            f"request was taken back, but an owner that has seen it stops in a minute; {again}."
        )
    return f"{head.owner.describe()} still owns {state.name}, and was left alone."


def read_receipt(move: Move) -> list[str]:
    """Return what the new machine wrote when it began to train; empty if that takes too long.

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
