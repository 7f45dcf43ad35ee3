"""Is somebody alive: the owner of a run, a watcher, or who prepares shared data?

A sign of life is as old as the clocks of two machines say. Where that could cost work, as in a
takeover, only a sign that has not changed for a while on this machine's clock counts (`Unchanged`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.state.head import Head
from pipeline.state.owner import Owner, is_running
from pipeline.state.run_state import RunState
from pipeline.state.stores.clock import Clock

# What is known of a run's owner: there is none; its process on this machine is gone; it has shown
# no sign of life for too long; or it lives.
Life = Literal["nobody", "dead", "silent", "alive"]


@dataclass(frozen=True)
class Liveness:
    """What is known of a run's owner, and when it last showed life, in Unix seconds."""

    life: Life
    at: float


def liveness(
    head: Head, beat_at: float | None, now: float, silence: float, *, running: bool | None = None
) -> Liveness:
    """Return whether a run's owner lives at `now`, in Unix seconds.

    `beat_at` is the time of its heartbeat; None: it may not have beaten yet, or the store has none,
    so HEAD's last commit counts. `silence` is that of the `RunState`. `running` is whether its
    process is alive; None if this machine can't tell.
    """
    at = last_change(head) if beat_at is None else beat_at
    if head.owner is None:
        return Liveness("nobody", at)
    if running is None:
        return Liveness("silent" if is_silent(at, now, silence) else "alive", at)
    return Liveness("alive" if running else "dead", at)


def owner_of(run: RunState, head: Head | None) -> Liveness:
    """Return whether the owner in the run's `head` lives now. Raises StoreError."""
    if head is None or head.owner is None:
        return Liveness("nobody", 0.0)
    beat, running = run.heartbeat(head.epoch), is_running(head.owner, Owner.me())
    beat_at = beat["at"] if beat else None
    return liveness(head, beat_at, run.clock.now(), run.silence, running=running)


def is_silent(at: float | None, now: float, seconds: float) -> bool:
    """Return whether the last sign of life, at `at` (None: there was none), is that old."""
    return at is None or now - at >= seconds


def last_change(head: Head) -> float:
    """Return the time of the last dated commit, in Unix seconds."""
    times = [entry.at for entry in head.checkpoints] + [claim.at for claim in head.claims]
    return max(times + [record.at for record in head.stages.values()], default=0.0)


class Unchanged:
    """Measures for how long a sign of life has been the same, by a clock that never jumps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: object = None
        self._since = clock.monotonic()

    def seconds(self, sign: object) -> float:
        """Return the seconds since `sign` was first given, without another one since."""
        clock_seconds = self._clock.monotonic()
        if sign != self._seen:
            self._seen, self._since = sign, clock_seconds
        return clock_seconds - self._since
