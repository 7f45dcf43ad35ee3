"""When to save: the Young–Daly interval, from the cost of a save and how long machines last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.state.head import Head

# Shorter intervals gain nothing: they would save less work than a restart takes.
MIN_SECONDS = 10.0

# With fewer processes than this, their mean life says little about the next machine.
SESSIONS_TO_TRUST = 4

# A notice of so many seconds that a machine will be taken is long enough to train on.
LONG_NOTICE = 60.0
# What is left of a long notice when the last save should be committed.
SPARE_SECONDS = 10.0
# The last save counts as so many seconds at least: an evaluation may have to end before it, and the
# workers after it.
LEAST_SAVE = 4.0


@dataclass
class SaveCadence:
    """Decides when the next checkpoint is due. Clock readings are passed in, in seconds.

    If a save costs C seconds (its copy, which stops training or runs next to it) and machines last
    M seconds on average, the best interval is √(2·C·M) (Young 1974, Daly 2006). It is at least
    MIN_SECONDS, and at least as long as the previous save took to become durable. A job with
    `every_steps` or `every_seconds` gets that instead. No interval is shorter than the store allows
    (`floor_seconds`). `on_cpu`: training and the uploader share their cores.
    """

    every_steps: int | None
    every_seconds: float | None
    preemption_seconds: float
    last_save: float
    floor_seconds: float = 0.0
    on_cpu: bool = False
    stall: float = 0.05
    write_seconds: float = 0.0

    @property
    def interval(self) -> float:
        """Seconds between saves, unless the job sets steps."""
        if self.every_seconds is not None:
            return max(self.every_seconds, self.floor_seconds)
        young_daly = math.sqrt(2 * max(self.stall, 1e-3) * self.preemption_seconds)
        return max(young_daly, self.write_seconds, self.floor_seconds, MIN_SECONDS)

    @property
    def by_steps_alone(self) -> bool:
        """Whether the job sets the steps between saves and no seconds."""
        return self.every_steps is not None and self.every_seconds is None

    def lag(self, step_seconds: float) -> float:
        """Return the most seconds of work that a loss undoes: from one save to the next, and until
        that is committed. `step_seconds` is the longest step."""
        return self.between_saves(step_seconds) + self.stall + self.write_seconds

    def pace(self, step_seconds: float) -> float:
        """Return the seconds that a second of steps takes, because saves stop training."""
        between = self.between_saves(step_seconds)
        return 1.0 + self.stall / between if between > 0 else 1.0

    def between_saves(self, step_seconds: float) -> float:
        """Return the seconds between two saves, of steps that take `step_seconds` at most."""
        if self.every_steps is None:
            return self.interval
        steps = self.every_steps * step_seconds
        return steps if self.by_steps_alone else min(self.interval, steps)

    def due(self, step: int, now: float) -> bool:
        """Return whether the state after `step` should be saved."""
        if self.too_soon(now):
            return False
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return not self.by_steps_alone and now - self.last_save >= self.interval

    def too_soon(self, now: float) -> bool:
        """Return whether the store does not allow another save yet."""
        return now - self.last_save < self.floor_seconds

    def saved(self, now: float, stall: float, write_seconds: float) -> None:
        """Note a save that began at `now`: what its copy costs, and how long the previous save took
        to become durable."""
        # On a CPU, writing takes cores from training: half of its time, as measured.
        slowed = write_seconds / 2 if self.on_cpu else 0.0
        self.last_save, self.stall, self.write_seconds = now, stall + slowed, write_seconds


def seconds_between_interruptions(head: Head, assumed: float) -> float:
    """Return the mean seconds that the earlier processes of this run owned it, or `assumed` until
    there were a few.

    The time in which the run waited for a machine does not count: HEAD's `spent` leaves it out.
    """
    # The earliest claim of each session stays, because the newest claim is the first.
    began = {claim.owner.session: claim.at for claim in head.claims}
    if not began:
        return assumed
    present = head.spent.until - began[head.claims[0].owner.session]
    # HEAD keeps only the newest claims. The older ones are taken to be like them.
    processes = len(began) * head.epoch / len(head.claims)
    return mean_life(3600 * head.spent.hours - max(present, 0.0), processes - 1, assumed)


def mean_life(lived: float, ended: float, assumed: float) -> float:
    """Return the mean seconds that processes lived, or `assumed` until there were a few.

    `ended` processes lived `lived` seconds in all. The present process is not among them.
    """
    if ended + 1 < SESSIONS_TO_TRUST:
        return assumed
    return max(lived / ended, 60.0)


def seconds_to_leave(stall: float, write: float) -> float:
    """Return how many seconds before its machine is taken a run stops training, to save and end.

    A save stopped training for `stall` seconds, and was committed `write` seconds later. The last
    save may have to wait for the previous save, so both count twice.
    """
    return 2 * max(stall + write, LEAST_SAVE) + SPARE_SECONDS
