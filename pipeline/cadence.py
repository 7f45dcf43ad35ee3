"""When to save: the Young–Daly interval, from what a save costs and how often machines vanish."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_SECONDS = 10.0
"""Shorter intervals gain nothing: restarting takes longer than the work they would save."""


@dataclass
class SaveCadence:
    """Decides when the next checkpoint is due. Clock readings are passed in, in seconds.

    The optimal interval between saves that each stall training for C seconds, on machines that
    last M seconds on average, is √(2·C·M) (Young 1974, Daly 2006). It is never shorter than the
    previous save took to become durable.
    """

    every_steps: int | None
    every_seconds: float | None
    preemption_seconds: float
    last_save: float
    stall: float = 0.05
    write_seconds: float = 0.0

    @property
    def interval(self) -> float:
        """Seconds between saves, unless the job fixes steps."""
        if self.every_seconds is not None:
            return self.every_seconds
        young_daly = math.sqrt(2 * max(self.stall, 1e-3) * self.preemption_seconds)
        return max(young_daly, self.write_seconds, MIN_SECONDS)

    def due(self, step: int, now: float) -> bool:
        """Whether the state after `step` should be saved."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        if self.every_steps is not None and self.every_seconds is None:
            return False
        return now - self.last_save >= self.interval

    def saved(self, now: float, stall: float, write_seconds: float) -> None:
        """Note a save that was started at `now`, and what the last one cost."""
        self.last_save, self.stall, self.write_seconds = now, stall, write_seconds
