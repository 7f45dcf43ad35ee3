"""Decide which steps are bad: a loss or gradient norm that is not finite, or a loss that jumps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

# A loss is compared with the median of this many good steps before it.
RECENT_STEPS = 64
# After fewer good steps than this, no loss counts as a spike.
ENOUGH_STEPS = 16


class StepJudge:
    """Judges steps in their order. `recent` has the losses of the last 64 good steps.

    A loss is a spike if it exceeds `max_spike` times their median. None: no loss is a spike.
    """

    def __init__(self, max_spike: float | None) -> None:
        self._max_spike = max_spike
        self.recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def recall(self, losses: Iterable[float]) -> None:
        """Continue from a state with these recent losses."""
        self.recent = deque(losses, maxlen=RECENT_STEPS)

    def what_is_wrong(self, loss: float, grad_norm: float) -> str | None:
        """Return why a step is bad, in words; None if it is not. The gradient norm is that before
        clipping."""
        numbers = (("loss", loss), ("gradient norm", grad_norm))
        if broken := [f"{name} {v:g}" for name, v in numbers if not math.isfinite(v)]:
            return " and ".join(broken)
        if self._max_spike is None or len(self.recent) < ENOUGH_STEPS:
            return None
        median = statistics.median(self.recent)
        if loss <= self._max_spike * median:
            return None
        return (
            f"loss {loss:.4g}, above {self._max_spike:g} × the median {median:.4g} of the last "
            f"{len(self.recent)} steps"
        )
