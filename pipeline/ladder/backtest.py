"""Whether the small runs of a ladder would have predicted its large ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.ladder.fit import law_of
from pipeline.ladder.points import Point

# The small runs have at most this share of the largest run's FLOPs.
SMALL = 0.25
# Errors above this are no noise of seeds: the loss of the ladder's runs follows another law.
FAR = 0.02


@dataclass(frozen=True)
class Backtest:
    """By which shares the large runs are above what a law of the `small` runs says, the smallest
    large run first."""

    small: int
    errors: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The error that is the furthest from 0."""
        return max(self.errors, key=abs)


def backtest(points: Sequence[Point]) -> Backtest | None:
    """Return how well the small runs predict the others; None if they are too few to fit."""
    by_size = sorted(points, key=lambda point: point.flops)
    most = SMALL * by_size[-1].flops
    small = [point for point in by_size if point.flops <= most]
    try:
        law = law_of(small)
    except BadInput:
        return None
    large = by_size[len(small) :]
    said = [law.loss(point.macs_per_token, point.tokens) for point in large]
    errors = tuple(point.bits_per_byte / loss - 1.0 for point, loss in zip(large, said))
    return Backtest(len(small), errors)
