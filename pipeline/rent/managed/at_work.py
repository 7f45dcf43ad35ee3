"""Find out whether a run's owner has shown life recently, on any machine."""

from __future__ import annotations

from pipeline.state.owner import Owner, is_running
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.run_status import last_change


def owner_age(state: RunState, head: Head | None) -> float | None:
    """Return the seconds since the owner's last sign of life; None without a living owner."""
    if head is None or head.owner is None or is_running(head.owner, Owner.me()) is False:
        return None
    beat = state.heartbeat(head.epoch)
    at = beat["at"] if beat else last_change(head)
    return max(0.0, state.clock.now() - at)


def is_at_work(state: RunState, head: Head | None) -> bool:
    """Return whether the run's owner has shown life recently."""
    age = owner_age(state, head)
    return age is not None and age < state.silence
