"""A note in a run's store that machines are rented for the run, and who manages them.

A machine's SkyPilot knows nothing of machines rented from another computer. Nobody owns the run
while a machine boots, or while a lost one is replaced. The note stays until the rental is over: the
run ends for good, or whoever rented sees that it did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from pion.errors import BadInput, Fenced, Interrupted, PionError
from pipeline.state.record_json import FORMAT, build, parse
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, Missing

NOTE = "rental.json"


@dataclass(frozen=True)
class RentalNote:
    """Who rents machines for a run.

    Attributes:
        at: when the rental was submitted, in Unix seconds.
        host: the computer it was submitted from, for a person.
        rented_from: that computer, as SkyPilot tells its users apart.
        launch_id: what the starts of the run on those machines have in common.
        epoch: the run's epoch when the rental was submitted.
        over: whether nobody rents for the run any more.
    """

    at: float
    host: str
    rented_from: str
    launch_id: str
    epoch: int
    over: bool = False
    format: int = FORMAT


def read_rental_note(state: RunState) -> tuple[RentalNote | None, str | None]:
    """Return the note of a rental that is not over, and the version of whatever the store has
    there.

    A note that can't be read is treated as absent. Raises StoreError.
    """
    key = state.key(NOTE)
    try:
        data, version = state.store.read_versioned(key)
    except Missing:
        return None, None
    where = f"{state.store.url}/{key}"
    try:
        note = build(RentalNote, parse(data, where), where)
    except BadInput:
        return None, version
    readable = isinstance(note.at, int | float) and isinstance(note.epoch, int)
    return (note if readable and not note.over else None), version


def write_rental_note(state: RunState, note: RentalNote, version: str | None) -> None:
    """Replace that version of the note by `note`. Raises Conflict if the store has another version;
    StoreError."""
    text = json.dumps(dataclasses.asdict(note), indent=1) + "\n"
    state.store.compare_and_swap(state.key(NOTE), text.encode(), version)


def withdraw_rental_note(
    state: RunState, launch_id: str | None, before: RentalNote | None = None
) -> None:
    """End the rental `launch_id`: mark its note as over, or put the note `before` back.

    Does nothing if the note is another rental's. Raises StoreError.
    """
    note, version = read_rental_note(state)
    if note is None or note.launch_id != launch_id:
        return
    with contextlib.suppress(Conflict):  # rented once more meanwhile
        write_rental_note(state, before or dataclasses.replace(note, over=True), version)
        state.store.flush()


@contextlib.contextmanager
def over_unless_interrupted(state: RunState, launch_id: str | None) -> Iterator[None]:
    """Withdraw the note when the run on this machine ends and no other machine continues it.

    An interrupted run continues elsewhere (exit code 75, `recover_on_exit_codes` in sky/). A fenced
    run already does, if the same rental replaced this machine by another.
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
    with contextlib.suppress(PionError):  # it only spares a person a --force
        head = state.read() if fenced else None
        newest = head.claims[0].owner.launch_id if head is not None and head.claims else None
        if newest != launch_id:
            withdraw_rental_note(state, launch_id)
