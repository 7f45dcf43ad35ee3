"""Predict the bits per byte of a run from a ladder of smaller runs, with an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt

from pion.errors import BadInput
from pipeline.ladder.interval import possible_results
from pipeline.ladder.law import PARAMETERS, Law, Measured, best_of_starts, predicted
from pipeline.ladder.points import Point, check_points, training_flops
from pipeline.state.record_json import build, closed_record

# The share of results that an interval holds.
HELD = 0.90
# A fit is trusted up to so many times the FLOPs of its largest run.
TRUSTED = 100.0


@dataclass(frozen=True)
class Prediction:
    """Bits per byte of a run, and between which numbers 90 % of such runs end."""

    bits_per_byte: float
    low: float
    high: float


@dataclass(frozen=True)
class _Record:
    """A fit as plain JSON. The noise is the standard deviation of a run from the law, in bits per
    byte."""

    points: tuple[Point, ...]
    law: Law
    noise: Annotated[float, Ge(0), Lt(1e9)]


closed_record(_Record)


@dataclass(frozen=True)
class Fit(_Record):
    """A law, and the points that it was fitted to."""

    @property
    def largest_flops(self) -> float:
        """The training FLOPs of the largest run that was fitted."""
        return max(point.flops for point in self.points)

    @property
    def trusted_flops(self) -> float:
        """Up to how many training FLOPs the fit predicts."""
        return TRUSTED * self.largest_flops

    def predict(self, macs_per_token: float, tokens: float) -> Prediction:
        """Return the bits per byte of a model of this size after training on so many tokens.

        Raises BadInput for numbers that are not above 0, and for more than `trusted_flops`.
        """
        for name, value in (("macs_per_token", macs_per_token), ("tokens", tokens)):
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"{name} is {value}, but should be a number above 0.")
        flops = training_flops(macs_per_token, tokens)
        if not self.trusts(flops):
            raise BadInput(
                f"{flops:.2g} FLOPs are {flops / self.largest_flops:,.0f} times those of the "
                f"ladder's largest run. A ladder is trusted up to {TRUSTED:.0f} times, which is "
                f"{self.trusted_flops:.2g} FLOPs. Ask for less, or add larger runs to the ladder."
            )
        middle = self.law.loss(macs_per_token, tokens)
        low, high = possible_results(_measured(self.points), self.law, macs_per_token, tokens, HELD)
        return Prediction(middle, min(low, middle), max(high, middle))

    def trusts(self, flops: float) -> bool:
        """Return whether a run of so many training FLOPs can be predicted."""
        # Sizes are rounded: `trusted_flops` and a little more are trusted.
        return flops <= self.trusted_flops * (1 + 1e-6)

    def record(self) -> dict[str, Any]:
        """Return the fit as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str = "the fit of the ladder") -> Fit:
        """Return the fit that `record` returned. Raises BadInput that names the file `where` and
        the place in it for a value that no fit has."""
        found = build(_Record, record, where)
        check_points(found.points)
        return cls(found.points, found.law, found.noise)


def fit(points: Sequence[Point]) -> Fit:
    """Return the law that fits the points best. The order of the points changes nothing.

    Raises BadInput for points that are too few, too alike or impossible.
    """
    check_points(points)
    points = sorted(points, key=lambda point: point.run)
    at = _measured(points)
    found = best_of_starts(at)
    curve, losses = np.exp(predicted(found, at)), np.exp(at.losses)
    noise = float(np.sqrt(np.sum((losses - curve) ** 2) / (len(points) - PARAMETERS)))
    return Fit(tuple(points), at.law(found), noise)


def _measured(points: Sequence[Point]) -> Measured:
    rows = [(float(p.macs_per_token), float(p.tokens), p.bits_per_byte) for p in points]
    return Measured.of(*np.array(rows).T)
