"""One rental of a run at a time, wherever it is submitted from.

A machine's SkyPilot knows nothing of what was submitted on another one, and nobody owns the run
while the first machine boots. So whoever submits leaves a note in the run's store, which counts
until a machine claims the run.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

from pion.errors import BadInput
from pipeline.formats import duration, moment
from pipeline.rent.managed.alone import alone
from pipeline.rent.managed.diagnose import BOOT_SECONDS
from pipeline.state.head import RunState
from pipeline.state.records import FORMAT, Head, parse
from pipeline.state.stores import Conflict, Missing, StoreError

NOTE = "rental.json"


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


def announce_rental(state: RunState, head: Head | None, *, force: bool = False) -> None:
    """Leave word in the store that a machine for the run is being rented from here.

    Raises BadInput if that is so from another machine, and no machine has claimed the run since
    `head`, unless `force`d. What was submitted here is known to SkyPilot, and does not count.
    """
    epoch = head.epoch if head is not None else 0
    note = {
        "format": FORMAT,
        "at": state.clock.now(),
        "host": socket.gethostname(),
        "epoch": epoch,
    }
    key, run = state.key(NOTE), f"{state.store.url}/{state.name}"
    try:
        before, version = _read(state, key)
        if not force and _counts(before, note):
            raise BadInput(
                f"a machine for {state.name} was rented from {before['host']} "
                f"{duration(note['at'] - before['at'])} ago, and has not claimed the run yet. "
                "Another one would be paid for too, so nothing was rented. See in a few minutes: "
                f"pion status {run}. If that was called off on {before['host']}: --force, or wait "
                f"until {moment(before['at'] + BOOT_SECONDS)}."
            )
        state.store.compare_and_swap(key, (json.dumps(note, indent=1) + "\n").encode(), version)
    except Conflict as error:
        raise BadInput(
            f"a machine for {state.name} is being rented by another process at this moment, so "
            f"nothing was rented. See in a few minutes: pion status {run}"
        ) from error
    except StoreError as error:
        raise BadInput(f"{error} Nothing was rented.") from error


def _read(state: RunState, key: str) -> tuple[dict[str, Any], str | None]:
    """The note that is there, and its version; empty where there is none that can be read."""
    try:
        data, version = state.store.read_versioned(key)
    except Missing:
        return {}, None
    try:
        return parse(data, f"{state.store.url}/{key}"), version
    except BadInput:
        return {}, version


def _counts(before: dict[str, Any], note: dict[str, Any]) -> bool:
    """Whether a machine may be on its way that SkyPilot here does not know of."""
    try:
        elsewhere = before["host"] != note["host"]
        booting = before["epoch"] == note["epoch"] and note["at"] < before["at"] + BOOT_SECONDS
    except (KeyError, TypeError):
        return False
    return elsewhere and booting
