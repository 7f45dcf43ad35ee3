"""How far the pass that computes a reference is, and how long it still takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.console.messages import PrepareProgress
from pipeline.cost.timeline import REFERENCE_PASS

if TYPE_CHECKING:
    from pipeline.training.context import TrainingContext


@dataclass
class PassProgress:
    """How many of the `total` rows of all splits have their numbers, and how long the rest takes.

    `computed` of them were computed here, since `began` (seconds of the run's clock).
    """

    context: TrainingContext
    total: int
    known: int = 0
    computed: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.context.run.clock.monotonic()

    def found(self, rows: int) -> None:
        """Count rows that an earlier process has computed."""
        self.known += rows

    def add(self, rows: int) -> None:
        """Count rows that were computed just now, and say how far the pass is."""
        self.known, self.computed = self.known + rows, self.computed + rows
        seconds = self.context.run.clock.monotonic() - self.began
        eta = (self.total - self.known) * seconds / self.computed
        self.context.watchdog.progress()
        self.context.report(
            PrepareProgress(REFERENCE_PASS, self.known, "rows", self.total, "prefer", eta)
        )
