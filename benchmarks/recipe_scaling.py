"""How the gain of a recipe changes with compute (benchmarks/recipes.py).

Each recipe gets a law of the races at equal FLOPs, with one floor for all:

    L(C) = E + a · C^-b,  where C are the FLOPs of a training

The *multiplier* of a recipe is how many times its FLOPs the other one needs for the same loss. Its
slope is how the multiplier's logarithm changes with that of C: at a slope of -0.1, ten times the
compute shrink the multiplier by a factor of 10^-0.1 = 0.79.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

# By recipe and seed, the bits per byte of each size; and the FLOPs of each size.
Losses = Mapping[str, Mapping[str, Sequence[float]]]
REPEATS = 500  # of the bootstrap over seeds
SEED = 1


def scaling(losses: Losses, flops: Sequence[float], other: str) -> dict[str, Any]:
    """Return the laws of recipes, and the multiplier of each over `other` with its slope.

    Intervals hold 90 % of the fits to seeds that are drawn again.
    """
    names = list(losses)
    draw = random.Random(SEED)
    found = _fit(_means(losses), flops)
    again = []
    for _ in range(REPEATS):
        seeds = draw.choices(list(losses[other]), k=len(losses[other]))
        again.append(_fit(_means(losses, seeds), flops))
    report: dict[str, Any] = {"floor": round(found[0], 4), "flops": list(flops), "recipes": {}}
    for name in names:
        a, b = found[1][names.index(name)]
        row: dict[str, Any] = {"a": round(a, 4), "b": round(b, 4)}
        if name != other:
            pair = names.index(name), names.index(other)
            row["multiplier"] = [round(_multiplier(found, *pair, c / flops[0]), 2) for c in flops]
            slopes = sorted(_slope(fit, *pair) for fit in again)
            row["slope"] = round(_slope(found, *pair), 3)
            row["slope_90"] = [round(slopes[int(share * REPEATS)], 3) for share in (0.05, 0.95)]
        report["recipes"][name] = row
    return report


Fit = tuple[float, list[tuple[float, float]]]  # the floor, and (a, b) of each recipe


def _means(losses: Losses, seeds: Sequence[str] | None = None) -> np.ndarray[Any, Any]:
    """Return the mean of each recipe and size: (recipes, sizes)."""
    return np.array(
        [
            np.mean([by_seed[seed] for seed in (seeds or by_seed)], axis=0)
            for by_seed in losses.values()
        ]
    )


def _fit(means: np.ndarray[Any, Any], flops: Sequence[float]) -> Fit:
    """Fit the laws to means (recipes, sizes). C is in units of the least FLOPs."""
    log_c = np.log(np.array(flops) / flops[0])
    count = len(means)

    def residuals(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, b = x[1 : 1 + count, None], x[1 + count :, None]
        return np.asarray(np.log(x[0] + np.exp(a - b * log_c)) - np.log(means)).ravel()

    floor = 0.5 * means.min()
    start = np.concatenate([[floor], np.log(means[:, 0] - floor), np.full(count, 0.2)])
    low = np.concatenate([[0.0], np.full(count, -10.0), np.zeros(count)])
    high = np.concatenate([[means.min() * 0.999], np.full(count, 10.0), np.full(count, 3.0)])
    x = least_squares(residuals, start, bounds=(low, high)).x
    return float(x[0]), [(math.exp(x[1 + i]), float(x[1 + count + i])) for i in range(count)]


def _multiplier(fit: Fit, one: int, other: int, c: float) -> float:
    """Return how many times the compute `other` needs for what `one` reaches with `c`."""
    (a, b), (a_other, b_other) = fit[1][one], fit[1][other]
    return (a_other / a) ** (1 / b_other) * c ** (b / b_other - 1)


def _slope(fit: Fit, one: int, other: int) -> float:
    return fit[1][one][1] / fit[1][other][1] - 1
