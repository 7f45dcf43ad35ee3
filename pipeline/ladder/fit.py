"""Predict the bits per byte of a run from a ladder of smaller runs, with an interval.

The interval has two parts. Other runs of the ladder would have given another law: each *resample*
fits the law to the curve with the residuals of other runs, drawn at random. The predicted run has
noise, too. A few runs can't say well how large this noise is, so each resample draws its size at
random. Together they hold the results of 90 % of runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Len, Lt

from pion.errors import BadInput
from pipeline.ladder.law import (
    PARAMETERS,
    Law,
    Measured,
    Vector,
    best_of_starts,
    predicted,
    search,
)
from pipeline.ladder.points import Point, check_points, training_flops
from pipeline.state.record_json import build, closed_record

# How many laws are fitted to resampled results.
RESAMPLES = 200
# The share of results that an interval holds.
HELD = 0.90
# A fit is trusted up to so many times the FLOPs of its largest run.
TRUSTED = 100.0
# So many values stand for the normal noise of a run, at equal steps of probability.
_STEPS = 40

# The least result of a resample, as a share of the law's. A result of 0 has no logarithm.
_LEAST = 0.05
Noise = Annotated[float, Ge(0), Lt(1e9)]


@dataclass(frozen=True)
class Prediction:
    """Bits per byte of a run, and between which numbers 90 % of such runs end."""

    bits_per_byte: float
    low: float
    high: float


@dataclass(frozen=True)
class Resample:
    """A law that was fitted to resampled results, and the noise of these results: the standard
    deviation, in bits per byte, of a run from the law."""

    law: Law
    noise: Noise


@dataclass(frozen=True)
class _Record:
    """A fit as plain JSON."""

    points: tuple[Point, ...]
    law: Law
    noise: Noise
    resamples: Annotated[tuple[Resample, ...], Len(20, 2000)]
    seed: Annotated[int, Ge(0), Lt(2**63)]


closed_record(_Record)


@dataclass(frozen=True)
class Fit(_Record):
    """A law, the points that it was fitted to, and what other points would have given."""

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
        self._require_trusted(training_flops(macs_per_token, tokens))
        laws = np.array([sample.law.loss(macs_per_token, tokens) for sample in self.resamples])
        noise = np.array([sample.noise for sample in self.resamples])
        possible = laws[:, None] + noise[:, None] * _normal_noise()
        low, high = np.quantile(possible, [(1 - HELD) / 2, (1 + HELD) / 2])
        middle = self.law.loss(macs_per_token, tokens)
        return Prediction(middle, min(float(low), middle), max(float(high), middle))

    def best_split(self, flops: float) -> tuple[int, int]:
        """Return (multiply-accumulates per token, tokens) with the lowest loss for the training
        FLOPs. Raises BadInput as `predict` does."""
        if not (math.isfinite(flops) and flops > 0):
            raise BadInput(f"flops is {flops}, but should be a number above 0.")
        self._require_trusted(flops)
        product = flops / training_flops(1, 1)
        macs = min(max(self.law.best_macs(product), 1.0), product)
        return max(1, round(macs)), max(1, round(product / macs))

    def trusts(self, flops: float) -> bool:
        """Return whether a run of so many training FLOPs can be predicted."""
        # A rounded split of exactly `trusted_flops` is trusted.
        return flops <= self.trusted_flops * (1 + 1e-6)

    def _require_trusted(self, flops: float) -> None:
        if not self.trusts(flops):
            raise BadInput(
                f"{_flops(flops)} FLOPs are {flops / self.largest_flops:,.0f} times those of the "
                f"ladder's largest run. A ladder is trusted up to {TRUSTED:.0f} times, which is "
                f"{_flops(self.trusted_flops)} FLOPs. Ask for less, or add larger runs to the "
                "ladder."
            )

    def record(self) -> dict[str, Any]:
        """Return the fit as plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str = "the fit of the ladder") -> Fit:
        """Return the fit that `record` returned. Raises BadInput that names the file `where` and
        the place in it for a value that no fit has."""
        found = build(_Record, record, where)
        check_points(found.points)
        return cls(found.points, found.law, found.noise, found.resamples, found.seed)


def fit(points: Sequence[Point], *, seed: int = 0) -> Fit:
    """Return the law that fits the points best, with what other points would have given.

    The order of the points changes nothing, and the same seed gives the same fit. Raises BadInput
    for points that are too few, too alike or impossible.
    """
    check_points(points)
    points = sorted(points, key=lambda point: point.run)
    at = Measured.of(*np.array([_numbers(point) for point in points]).T)
    found, threshold = best_of_starts(at)
    curve, losses = np.exp(predicted(found, at)), np.exp(at.losses)
    noise = float(np.sqrt(np.sum((losses - curve) ** 2) / (len(points) - PARAMETERS)))
    resamples = []
    for drawn, scale in _resample(curve, losses - curve, noise, np.random.default_rng(seed)):
        other = search(found, at, np.log(np.maximum(drawn, _LEAST * curve)), threshold)
        resamples.append(Resample(at.law(other), scale))
    return Fit(tuple(points), at.law(found), noise, tuple(resamples), seed)


def law_of(points: Sequence[Point]) -> Law:
    """Return the law that fits the points best. Raises BadInput as `fit` does."""
    check_points(points)
    at = Measured.of(*np.array([_numbers(point) for point in points]).T)
    found, _ = best_of_starts(at)
    return at.law(found)


def _resample(
    curve: Vector, residuals: Vector, noise: float, rng: np.random.Generator
) -> Iterator[tuple[Vector, float]]:
    """Yield results that the runs could have had, each with the noise that made them: the curve,
    and at each point the residual of a run drawn at random."""
    freedom = len(residuals) - PARAMETERS
    centred = residuals - residuals.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    # A fit follows its points, so residuals are smaller than the noise.
    pool = centred / spread if spread > 0 else centred
    for _ in range(RESAMPLES):
        # The noise that so few residuals show may be far from the true noise.
        scale = noise * math.sqrt(freedom / rng.chisquare(freedom))
        yield curve + scale * rng.choice(pool, len(curve)), scale


def _normal_noise() -> Vector:
    """Return values of the standard normal distribution, at equal steps of probability."""
    from scipy.special import ndtri

    quantiles: Vector = ndtri((np.arange(_STEPS) + 0.5) / _STEPS)
    return quantiles


def _numbers(point: Point) -> tuple[float, float, float]:
    return float(point.macs_per_token), float(point.tokens), point.bits_per_byte


def _flops(flops: float) -> str:
    return f"{flops:.2g}"
