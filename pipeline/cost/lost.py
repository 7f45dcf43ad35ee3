"""Rented machines that never owned the run: refused by the boot check, or lost while they booted.

They were paid for and can't say so themselves, as a machine reports to a run once it owns it. So
whoever watches the rental leaves a small object for each among the run's events, which needs no
claim and no HEAD. It is named after the machine, so that it is one however many watch.
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

LOST = "lost"
"""Kind of the event."""
_EPOCH = 0
"""Before the first: of no owner."""


@dataclass(frozen=True)
class LostMachine:
    """A machine that ended, or whose job did, before it owned the run.

    Seen to be paid for from `begin` to `end` (Unix seconds); `price` is in dollars per hour.
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
    """Note `machine` among the events of `run`, unless somebody has. Raises StoreError."""
    event = {"event": LOST, "epoch": _EPOCH, "at": machine.end, **dataclasses.asdict(machine)}
    key = run.key(f"events/{_EPOCH}/{LOST}-{machine.id}.jsonl")
    with contextlib.suppress(Conflict):
        run.store.compare_and_swap(key, (json.dumps(event) + "\n").encode(), None)


def owners_of(events: Sequence[Mapping[str, Any]]) -> set[str]:
    """Every rented machine that has owned the run, by its own word."""
    return {str(event["id"]) for event in events if event["event"] == RENTED}


def lost_machines(events: Sequence[Mapping[str, Any]]) -> list[LostMachine]:
    """Those that came to nothing. One that owned the run after all speaks for itself."""
    owners = owners_of(events)
    found = {str(e["id"]): e for e in events if e["event"] == LOST and str(e["id"]) not in owners}
    names = [field.name for field in dataclasses.fields(LostMachine)]
    return [LostMachine(**{name: event[name] for name in names}) for event in found.values()]
