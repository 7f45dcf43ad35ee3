"""A note in a run's store that machines are rented for the run, and who manages them.

The SkyPilot of one computer does not know about machines rented from another computer. And nobody
owns the run while a machine boots, or while a lost machine is replaced. The note stays until the
rental is over: the run ends for good, or the computer that rented the machines sees the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pion.errors import Fenced, Interrupted, PionError
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import FORMAT, Epoch, Time, closed_record
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, StoreError

NOTE = "rental.json"


@closed_record
@dataclass(frozen=True)
class RentalNote:
    """Who rents machines for a run.

    Attributes:
        at: when the rental was submitted, in Unix seconds.
        host: the name of the computer that submitted the rental, for people.
        rented_from: SkyPilot's user id of that computer.
        launch_id: the id that all starts of the run on these machines share.
        epoch: the run's epoch when the rental was submitted.
        over: whether the rental has ended.
    """

    at: Time
    host: str
    rented_from: str
    launch_id: str
    epoch: Epoch
    over: bool = False
    format: int = FORMAT


def read_rental_note(state: RunState) -> tuple[RentalNote | None, str | None]:
    """Return the note of a rental that is not over, and the version of the store's note.

    A note that can't be read is treated as absent, but its version is returned. Raises StoreError.
    """
    note, version = _file(state).read_if_readable()
    return (None if note is None or note.over else note), version


def never_rented(state: RunState) -> bool:
    """Return whether the store says that no machine was ever rented for the run. A store that does
    not answer says nothing."""
    try:
        return read_rental_note(state)[1] is None
    except StoreError:
        return False


def write_rental_note(state: RunState, note: RentalNote, version: str | None) -> None:
    """Replace `version` of the note by `note`. Raises Conflict if the store has another version,
    and StoreError."""
    if not _file(state).swap(note, version):
        raise Conflict(state.key(NOTE), state.store.url)


def withdraw_rental_note(
    state: RunState, launch_id: str | None, before: RentalNote | None = None
) -> None:
    """End the rental `launch_id`: mark its note as over, or restore the note `before`.

    Does nothing if the note belongs to another rental. Raises StoreError.
    """
    note, version = read_rental_note(state)
    if note is None or note.launch_id != launch_id:
        return
    with contextlib.suppress(Conflict):  # somebody rented again in the meantime
        write_rental_note(state, before or dataclasses.replace(note, over=True), version)
        state.store.flush()


@contextlib.contextmanager
def over_unless_interrupted(state: RunState, launch_id: str | None) -> Iterator[None]:
    """Withdraw the note when the run on this machine ends and no other machine continues it.

    An interrupted run continues on another machine (exit code 75, `recover_on_exit_codes` in sky/).
    A fenced run already runs on another machine if the same rental replaced this machine.
    """
    try:
        yield
    except Exception as error:
        code = getattr(error, "exit_code", 1)
        if code != Interrupted.exit_code:
            _withdraw(state, launch_id, fenced=code == Fenced.exit_code)
        raise
    _withdraw(state, launch_id)


def _withdraw(state: RunState, launch_id: str | None, *, fenced: bool = False) -> None:
    if launch_id is None:
        return
    with contextlib.suppress(PionError):  # a note that stays only makes a person add --force
        head = state.read() if fenced else None
        newest = head.claims[0].owner.launch_id if head is not None and head.claims else None
        if newest != launch_id:
            withdraw_rental_note(state, launch_id)


def _file(state: RunState) -> RecordFile[RentalNote]:
    return RecordFile(state.store, state.key(NOTE), strictly(RentalNote))
