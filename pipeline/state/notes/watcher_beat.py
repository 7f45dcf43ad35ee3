"""The sign of life of who watches a rented run, kept in its store: `watcher.json`.

A run with a deadline needs a watcher that requests machines. The watcher says when it last looked,
what it knows, and from when on nobody watching would put the deadline at risk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Lt
from typing_extensions import TypedDict

from pipeline.state.liveness import is_silent
from pipeline.state.owner import Author, code_version
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import FORMAT, Amount, Count, Time, open_record
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError

BEAT = "watcher.json"
# Seconds between two signs of life: on a store whose commits are limited, more.
BEAT_SECONDS = 300.0
COMMIT_BEAT_SECONDS = 900.0
# After so many seconds without a sign of life, nobody is presumed to watch.
SILENT_SECONDS = 600.0
COMMIT_SILENT_SECONDS = 1200.0
# The format of deadline.json that this version's watcher obeys.
KNOWN_DEADLINES = FORMAT


# Seconds; below 0, the deadline will be missed.
Slack = Annotated[float, Gt(-1e12), Lt(1e12)]


@open_record
class Saw(TypedDict):
    """What a watcher has seen of a deadline, in seconds: what may still be lost, the slack at which
    waiting for spot ends, and the work that is left on demand. `state` says what the run does: it
    is a value of `pipeline.rent.deadline.policy.State`."""

    state: str
    slack: Slack
    reserve: Amount
    work_left: Amount


@open_record
@dataclass(frozen=True)
class WatcherBeat:
    """A watcher's last sign of life. A newer watcher may write more.

    Attributes:
        at: when it was written, in Unix seconds.
        by: who watches.
        pion: the version of the watcher, and its commit if known.
        knows_deadlines: the newest format of deadline.json that the watcher obeys; 0: none.
        risk_at: the last moment at which somebody must watch, in Unix seconds. If nobody does from
            then on, the deadline is at risk. None: there is no such moment.
        saw: what the watcher has seen; None: nothing yet.
    """

    at: Time
    by: Author
    pion: str
    knows_deadlines: Count = 0
    risk_at: Time | None = None
    saw: Saw | None = None

    def too_old(self) -> bool:
        """Return whether this watcher does not obey a deadline of this version."""
        return self.knows_deadlines < KNOWN_DEADLINES


def read_beat(run: RunState) -> WatcherBeat | None:
    """Return the last sign of life of a run's watcher.

    Returns None if there is none that can be read: a beat is a courtesy and must not end a command.
    Raises StoreError.
    """
    return _file(run).read_if_readable()[0]


def write_beat(
    run: RunState, risk_at: float | None, saw: Saw | None = None, *, now: float | None = None
) -> None:
    """Say that this process watches the run, and what it saw. Raises StoreError.

    `now` is the time by the store's clock, in Unix seconds; None: by this machine's.
    """
    _file(run).write(
        WatcherBeat(
            at=run.clock.now() if now is None else now,
            by=Author.me(),
            pion=_version(),
            knows_deadlines=KNOWN_DEADLINES,
            risk_at=risk_at,
            saw=saw,
        )
    )


class WatcherBeats:
    """Writes the sign of life of this process's watcher, as often as the store allows.

    `now` is the store's clock.
    """

    def __init__(self, run: RunState, now: Callable[[], float]) -> None:
        self._run, self._now = run, now
        self._written: float | None = None  # of the monotonic clock
        self._state: str | None = None

    def beat(self, risk_at: float | None, saw: Saw | None = None) -> bool:
        """Write a sign of life if the last one is old enough; return whether it was written.

        If the run does something else than at the last one, write at once where the store allows
        it. A store that fails must not end the watcher: the next call tries again.
        """
        now = self._run.clock.monotonic()
        every = COMMIT_BEAT_SECONDS if self._run.store.commits else BEAT_SECONDS
        recent = self._written is not None and now - self._written < every
        state = None if saw is None else saw["state"]
        if recent and (state == self._state or self._run.store.commits):
            return False
        try:
            write_beat(self._run, risk_at, saw, now=self._now())
        except StoreError:
            return False
        self._written, self._state = now, state
        return True


def nobody_watches(run: RunState, beat: WatcherBeat | None, now: float) -> bool:
    """Return whether nobody seems to watch the run at `now`, in Unix seconds."""
    seconds = COMMIT_SILENT_SECONDS if run.store.commits else SILENT_SECONDS
    return is_silent(None if beat is None else beat.at, now, seconds)


def _file(run: RunState) -> RecordFile[WatcherBeat]:
    return RecordFile(run.store, run.key(BEAT), strictly(WatcherBeat))


@functools.cache
def _version() -> str:
    code = code_version()
    version = code.versions.get("pion", "unknown")
    return f"{version} ({code.commit[:7]})" if code.commit else version
