"""Predict the bits per byte of a run from a ladder of smaller runs, with an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Lt

from pion.errors import BadInput
from pipeline.ladder.law import (
    PARAMETERS,
    Law,
    LogResults,
    Point,
    Vector,
    best_of_starts,
    bounds_of,
    check_points,
    predicted,
    terms,
    training_flops,
)
from pipeline.state.record_json import closed_record

# The share of results that an interval holds.
HELD = 0.90
# A fit is trusted up to so many times the FLOPs of its largest run.
TRUSTED = 100.0


@closed_record
@dataclass(frozen=True)
class Prediction:
    """Bits per byte of a run, and between which numbers 90 % of such runs end."""

    bits_per_byte: float
    low: float
    high: float


@closed_record
@dataclass(frozen=True)
class Fit:
    """A law, and the points that it was fitted to. The noise is the standard deviation of a run
    from the law, in bits per byte. Raises BadInput for points that no fit has."""

    points: tuple[Point, ...]
    law: Law
    noise: Annotated[float, Ge(0), Lt(1e9)]

    def __post_init__(self) -> None:
        check_points(self.points)

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

        Raises BadInput for more than `trusted_flops`.
        """
        flops = training_flops(macs_per_token, tokens)
        # Sizes are rounded: `trusted_flops` and a little more are trusted.
        if flops > self.trusted_flops * (1 + 1e-6):
            raise BadInput(
                f"{flops:.2g} FLOPs are {flops / self.largest_flops:,.0f} times those of the "
                f"ladder's largest run. A ladder is trusted up to {TRUSTED:.0f} times, which is "
                f"{self.trusted_flops:.2g} FLOPs. Ask for less, or add larger runs to the ladder."
            )
        middle = self.law.loss(macs_per_token, tokens)
        low, high = possible_results(
            LogResults.of(self.points), self.law, macs_per_token, tokens, HELD
        )
        return Prediction(middle, min(low, middle), max(high, middle))


def fit(points: Sequence[Point]) -> Fit:
    """Return the law that fits the points best. The order of the points changes nothing.

    Raises BadInput for points that are too few, too alike or impossible.
    """
    check_points(points)
    points = sorted(points, key=lambda point: point.run)
    at = LogResults.of(points)
    found = best_of_starts(at)
    curve, losses = np.exp(predicted(found, at)), np.exp(at.losses)
    noise = float(np.sqrt(np.sum((losses - curve) ** 2) / (len(points) - PARAMETERS)))
    return Fit(tuple(points), at.law(found), noise)


# ---------------------------------------------------------------- intervals

# Between which results a run ends that is not in the ladder: a profile of the likelihood. A result
# is possible if a law through the ladder *and* this result fits hardly worse than a law through
# the ladder alone: the sum of squared residuals is larger by at most t²·s². s² is the variance of
# a run around the law, and t is Student's, because a few runs can't say well how large s² is. For
# a law that is linear in its parameters, this is the exact interval of one more result. Here the
# law may bend as far as the ladder allows: docs/ladder.md says how many results of made-up laws
# the intervals hold.


# The least noise of a run, as a share of its result: a law that fits exactly has an interval, too.
LEAST_NOISE = 1e-6
# By how much intervals are wider than Student's t says, because the law bends. Without it, those of
# 3,000 made-up ladders held 89.2 % ± 0.5 in place of 90 %.
MARGIN = 1.05
# Each end of an interval is searched to this share of its distance from the middle.
PRECISION = 3e-3
# The most steps of a fit. It takes 10 to 30.
MOST_STEPS = 100


def possible_results(
    at: LogResults, law: Law, macs_per_token: float, tokens: float, held: float
) -> tuple[float, float]:
    """Return the least and the largest possible bits per byte of a run of this size and length.

    They hold a share `held` of such runs. `law` is where the search for the law of least squares
    begins.
    """
    from scipy.special import stdtrit

    own = np.exp(at.losses)
    best, least = _least_squares(at.parameters(law), at, own, at)
    middle = at.law(best).loss(macs_per_token, tokens)
    freedom = len(own) - PARAMETERS
    noise = max(math.sqrt(least / freedom), LEAST_NOISE * middle)
    allowed = MARGIN * float(stdtrit(freedom, (1 + held) / 2)) * noise
    more = dataclasses.replace(
        at,
        sizes=np.append(at.sizes, math.log(macs_per_token) - at.mean_size),
        lengths=np.append(at.lengths, math.log(tokens) - at.mean_length),
    )

    def excess(result: float) -> float:
        squares = _least_squares(best, more, np.append(own, result), at)[1]
        # The root is nearly linear in the result, so few steps find its end.
        return math.sqrt(max(0.0, squares - least)) - allowed

    return max(0.0, _end(excess, middle, -allowed)), _end(excess, middle, allowed)


def _end(excess: Callable[[float], float], middle: float, step: float) -> float:
    """Return how far from the middle, in the direction of `step`, a result has no excess."""
    from scipy.optimize import brentq

    near, far = middle, middle + step
    while excess(far) < 0:
        step *= 2
        near, far = far, far + step
    return float(brentq(excess, near, far, xtol=PRECISION * abs(step)))


def _least_squares(
    start: Vector, at: LogResults, losses: Vector, ladder: LogResults
) -> tuple[Vector, float]:
    """Return the law's parameters with the least sum of squared residuals of `losses`, in bits per
    byte, and this sum. The parameters are within the bounds of the ladder."""
    from scipy.optimize import least_squares

    def residuals(theta: Vector) -> Vector:
        return np.asarray(np.exp(terms(theta, at)).sum(axis=0) - losses)

    def slopes(theta: Vector) -> Vector:
        e, a, b = np.exp(terms(theta, at))
        return np.stack([e, a, -a * at.sizes, b, -b * at.lengths], axis=1)

    low, high = np.array(bounds_of(ladder)).T
    inside = np.clip(start, low + 1e-9, high - 1e-9)
    found = least_squares(
        residuals, inside, slopes, bounds=(low, high), xtol=1e-9, ftol=1e-10, max_nfev=MOST_STEPS
    )
    return np.asarray(found.x), 2.0 * float(found.cost)
