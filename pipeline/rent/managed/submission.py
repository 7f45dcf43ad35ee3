"""One rental of a run at a time, wherever it is submitted from."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from pion.errors import BadInput
from pipeline.console.formats import duration, moment
from pipeline.rent.managed.diagnose import BOOT_SECONDS
from pipeline.rent.managed.lock import alone
from pipeline.rent.managed.names import my_hash
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
    """Raises BadInput if `name` is being submitted by another process of this machine: both would
    find no job yet, and each rent a machine."""
    with alone(name, "submit") as nobody_else:
        if not nobody_else():
            raise BadInput(
                f"{name} is being submitted by another process here, so nothing was rented. See "
                "in a minute: pion rentals"
            )
        yield


@contextlib.contextmanager
def announced(
    state: RunState, head: Head | None, launch_id: str, *, moving: bool = False, force: bool = False
) -> Iterator[RentalNote | None]:
    """`announce_rental`, taken back if the block raises BadInput or StoreError: then nothing was
    rented."""
    before = announce_rental(state, head, launch_id, moving=moving, force=force)
    try:
        yield before
    except (BadInput, StoreError):
        with contextlib.suppress(StoreError):
            withdraw_rental_note(state, launch_id, before)
        raise


def announce_rental(
    state: RunState, head: Head | None, launch_id: str, *, moving: bool = False, force: bool = False
) -> RentalNote | None:
    """Leave word in the store that machines for the run are rented from here, as `launch_id`.

    Returns the word that it replaces, if that is not over.

    Raises:
        BadInput: they are rented from elsewhere already, and it is not `force`d. Where the run is
            `moving`, which ends that rental, only while no machine of it has claimed the run. What
            was submitted here is known to SkyPilot, and does not count.
    """
    note = RentalNote(
        at=state.clock.now(),
        host=socket.gethostname(),
        rented_from=my_hash(),
        launch_id=launch_id,
        epoch=head.epoch if head is not None else 0,
    )
    try:
        with before_work("Nothing was rented."):
            before, version = read_rental_note(state)
            if not force and before is not None and before.rented_from != note.rented_from:
                _refuse_second(state, before, note, moving=moving)
            write_rental_note(state, note, version)
            return before
    except Conflict as error:
        raise BadInput(
            f"a machine for {state.name} is being rented by another process at this moment, so "
            f"nothing was rented. See in a few minutes: pion status {state.url}"
        ) from error


def _refuse_second(state: RunState, before: RentalNote, note: RentalNote, *, moving: bool) -> None:
    """Raise BadInput if a machine that was rented elsewhere may be on its way, or come again."""
    ago = f"{duration(note.at - before.at)} ago"
    if before.epoch == note.epoch and note.at < before.at + BOOT_SECONDS:
        raise BadInput(
            f"a machine for {state.name} was rented from {before.host} {ago}, and has not claimed "
            "the run yet. Another one would be paid for too, so nothing was rented. See in a few "
            f"minutes: pion status {state.url}. If that was called off on {before.host}: "
            f"--force{f', or wait until {moment(before.at + BOOT_SECONDS)}' if moving else ''}."
        )
    if not moving:
        raise BadInput(
            f"{state.name} was rented from {before.host} {ago}, and that is not over: SkyPilot "
            "there waits for a machine, or replaces one that was lost. Another one would be paid "
            f"for too, so nothing was rented. Move it to a machine rented from here: pion hop "
            f"{state.url} --on SKY. If it was called off on {before.host} (sky jobs cancel): "
            "--force"
        )
