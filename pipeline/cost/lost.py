"""Rented machines that never owned the run: refused by the boot check, or lost while they booted.

They cost money but can't report it, because a machine only reports to a run that it owns. So the
command that watches the rental writes a small object for each of them among the run's events. This
needs no claim and no HEAD. The object is named after the machine, so several watching commands
write it only once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.machine.rented import RENTED
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict

# The kind of the event.
LOST = "lost"
# The epoch of these events: they have no owner, so it is before the first epoch.
_EPOCH = 0


@dataclass(frozen=True)
class LostMachine:
    """A machine that ended, or whose job ended, before it owned the run.

    The watching command saw it billing from `begin` to `end` (Unix seconds). `price` is in dollars
    per hour.
    """

    id: str
    cloud: str
    gpu: str | None
    count: int
    price: float | None
    managed_job: str | None
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.begin)


def keep_lost(run: RunState, machine: LostMachine) -> None:
    """Write `machine` into the events of `run`, unless it is there already. Raises StoreError."""
    event = {"event": LOST, "epoch": _EPOCH, "at": machine.end, **dataclasses.asdict(machine)}
    key = run.key(f"events/{_EPOCH}/{LOST}-{machine.id}.jsonl")
    with contextlib.suppress(Conflict):
        run.store.compare_and_swap(key, (json.dumps(event) + "\n").encode(), None)


def owners_of(events: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the ids of all rented machines that have owned the run."""
    return {str(event["id"]) for event in events if event["event"] == RENTED}


def lost_machines(events: Sequence[Mapping[str, Any]]) -> list[LostMachine]:
    """Return the machines that never owned the run, from its events."""
    owners = owners_of(events)
    found = {str(e["id"]): e for e in events if e["event"] == LOST and str(e["id"]) not in owners}
    names = [field.name for field in dataclasses.fields(LostMachine)]
    return [LostMachine(**{name: event[name] for name in names}) for event in found.values()]
