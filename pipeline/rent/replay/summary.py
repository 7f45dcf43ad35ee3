"""Sum up all replays of one trace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.rent.replay.options import Number
from pipeline.rent.replay.simulate import CAUSES, Outcome
from pipeline.rent.replay.traces import Trace

PERCENTILES = (10, 50, 90)
NAMES = tuple(f"p{percent}" for percent in PERCENTILES)


@dataclass(frozen=True)
class Summary:
    """All replays of a trace.

    `percentiles` maps a quantity to its values at PERCENTILES, in seconds unless the name says
    otherwise; a value is None if too many starts did not finish. `goodput` and `badput` are shares
    of all paid time. `stopped` counts the starts that did not finish, by reason.
    """

    trace: Trace
    outcomes: Mapping[int, Outcome]
    percentiles: Mapping[str, tuple[float | None, ...]]
    goodput: float
    badput: Mapping[str, float]
    stopped: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON."""
        return {
            "trace": self.trace.name,
            "recorded_seconds": self.trace.seconds,
            "available": self.trace.share,
            "preemptions": self.trace.preemptions,
            "starts": len(self.outcomes),
            "stopped": dict(self.stopped),
            "goodput": self.goodput,
            "badput": dict(self.badput),
            "percentiles": {
                name: dict(zip(NAMES, values)) for name, values in self.percentiles.items()
            },
        }


def summarise(trace: Trace, outcomes: Mapping[int, Outcome], spot: Number | None) -> Summary:
    """Sum up the replays of a trace, at `spot` dollars per hour."""
    quantities = {
        "elapsed": [o.elapsed if o.stopped is None else math.inf for o in outcomes.values()],
        "paid": [o.paid if o.stopped is None else math.inf for o in outcomes.values()],
        "waiting": [o.waiting if o.stopped is None else math.inf for o in outcomes.values()],
        "preemptions": [float(o.preemptions) for o in outcomes.values()],
        "goodput": [o.goodput for o in outcomes.values()],
    }
    if spot is not None:
        quantities["dollars"] = [seconds / 3600 * spot.value for seconds in quantities["paid"]]
    total = sum(o.paid for o in outcomes.values())
    reasons = [o.stopped for o in outcomes.values() if o.stopped is not None]
    return Summary(
        trace,
        outcomes,
        {name: _percentiles(values) for name, values in quantities.items()},
        goodput=sum(o.kept for o in outcomes.values()) / total,
        badput={c: sum(o.lost[c] for o in outcomes.values()) / total for c in CAUSES},
        stopped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
    )


def _percentiles(values: Sequence[float]) -> tuple[float | None, ...]:
    """Return percentiles that are values of some start. An infinite one becomes None."""
    found = np.percentile(values, PERCENTILES, method="inverted_cdf")
    return tuple(float(value) if math.isfinite(value) else None for value in found)
