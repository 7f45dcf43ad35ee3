"""Prevent two rentals of one run, from this machine or from another one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from pion.errors import BadInput
from pipeline.console.formats import duration, moment
from pipeline.rent.managed.diagnose import BOOT_SECONDS
from pipeline.rent.managed.lock import rental_lock
from pipeline.state.records import Head
from pipeline.state.rental_note import (
    RentalNote,
    read_rental_note,
    withdraw_rental_note,
    write_rental_note,
)
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, StoreError
from pipeline.state.stores.verdict import before_work


@contextlib.contextmanager
def submitting_alone(name: str) -> Iterator[None]:
    """Raise BadInput if another process of this machine is submitting the rental `name`.

    Otherwise neither process would see the other's job yet, and both would rent a machine.
    """
    with rental_lock(name, "submit") as try_lock:
        if not try_lock():
            raise BadInput(
                f"another process on this machine is submitting {name}, so nothing was rented. "
                "Check again in a minute: pion rentals"
            )
        yield


def note_of(state: RunState, head: Head | None, *, launch_id: str, rented_from: str) -> RentalNote:
    """Return a note that this machine now rents for the run, as `launch_id`."""
    return RentalNote(
        at=state.clock.now(),
        host=socket.gethostname(),
        rented_from=rented_from,
        launch_id=launch_id,
        epoch=head.epoch if head is not None else 0,
    )


@contextlib.contextmanager
def announced(
    state: RunState, note: RentalNote, *, moving: bool = False, force: bool = False
) -> Iterator[RentalNote | None]:
    """Announce a rental, and withdraw the note if the block raises BadInput or StoreError.

    These two errors mean that nothing was rented. Yields what `announce_rental` returns, and raises
    the same errors.
    """
    before = announce_rental(state, note, moving=moving, force=force)
    try:
        yield before
    except (BadInput, StoreError):
        with contextlib.suppress(StoreError):
            withdraw_rental_note(state, note.launch_id, before)
        raise


def announce_rental(
    state: RunState, note: RentalNote, *, moving: bool = False, force: bool = False
) -> RentalNote | None:
    """Write `note` to the store; return the note that it replaces, if that rental is not over.

    Rentals from this machine don't count here: its SkyPilot knows them.

    Raises:
        BadInput: another machine has rented for the run, and `force` is not set. A run that is
            `moving` may replace the other rental once one of its machines has claimed the run, or
            after BOOT_SECONDS.
    """
    try:
        with before_work("Nothing was rented."):
            before, version = read_rental_note(state)
            if not force and before is not None and before.rented_from != note.rented_from:
                _refuse_second(state, before, note, moving=moving)
            write_rental_note(state, note, version)
            return before
    except Conflict as error:
        raise BadInput(
            f"another process is renting a machine for {state.name} at this moment, so nothing "
            f"was rented. Check again in a few minutes: pion status {state.url}"
        ) from error


def _refuse_second(state: RunState, before: RentalNote, note: RentalNote, *, moving: bool) -> None:
    """Raise BadInput if a machine that was rented elsewhere may still start or be replaced."""
    ago = f"{duration(note.at - before.at)} ago"
    if before.epoch == note.epoch and note.at < before.at + BOOT_SECONDS:
        raise BadInput(
            f"a machine for {state.name} was rented from {before.host} {ago}, and has not claimed "
            "the run yet. You would pay for both machines, so nothing was rented. Check again in a "
            f"few minutes: pion status {state.url}. If you have cancelled that rental on "
            f"{before.host}, add --force"
            f"{f', or wait until {moment(before.at + BOOT_SECONDS)}' if moving else ''}."
        )
    if not moving:
        raise BadInput(
            f"{state.name} was rented from {before.host} {ago}, and that rental is not over. "
            "SkyPilot there is waiting for a machine, or replacing a lost machine. You would pay "
            "for both machines, so nothing was rented. To move the run to a machine rented from "
            f"here: pion hop {state.url} --on SKY. If you have cancelled that rental on "
            f"{before.host} (sky jobs cancel), add --force"
        )
