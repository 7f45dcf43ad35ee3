"""How the gain of a recipe changes with compute (benchmarks/recipes.py).

A recipe and the one that it is compared with get a law of the races at equal FLOPs, with one floor
for both:

    L(C) = E + a · C^-b,  where C are the FLOPs of a training

The *multiplier* of a recipe is how many times its FLOPs the other one needs for the same loss. Its
slope is how the multiplier's logarithm changes with that of C: at a slope of -0.1, ten times the
compute shrink the multiplier by a factor of 10^-0.1 = 0.79.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

# By recipe and seed, the bits per byte of each size.
Losses = Mapping[str, Mapping[str, Sequence[float]]]
# The share of intervals that hold the slope, and how many seeds an interval needs.
HELD, LEAST_SEEDS = 0.9, 4


def scaling(losses: Losses, flops: Sequence[float], other: str) -> dict[str, Any]:
    """Return the multiplier of each recipe over `other` with its slope, from the mean of all seeds
    that both have.

    With LEAST_SEEDS, the slope is the mean of those of single seeds, and has an interval of
    Student's t: no other seed is behind a law of one seed.
    """
    report: dict[str, Any] = {"flops": list(flops), "recipes": {}}
    for name in losses:
        if name != other:
            seeds = sorted(losses[name].keys() & losses[other].keys())
            pairs = np.array([[losses[arm][seed] for arm in (name, other)] for seed in seeds])
            report["recipes"][name] = {"seeds": len(seeds), **_compared(pairs, flops)}
    return report


def _compared(pairs: np.ndarray[Any, Any], flops: Sequence[float]) -> dict[str, Any]:
    """Return how two recipes compare: `pairs` is (seeds, 2, sizes)."""
    floor, laws = _fit(pairs.mean(axis=0), flops)
    row: dict[str, Any] = {
        "floor": round(floor, 4),
        "laws": [[round(v, 4) for v in x] for x in laws],
    }
    row["multiplier"] = [round(_multiplier(laws, c / flops[0]), 2) for c in flops]
    if len(pairs) < LEAST_SEEDS:
        return row | {"slope": round(_slope(laws), 3)}
    slopes = [_slope(_fit(one, flops)[1]) for one in pairs]
    mean, error = statistics.mean(slopes), statistics.stdev(slopes) / math.sqrt(len(slopes))
    half = float(stdtrit(len(slopes) - 1, (1 + HELD) / 2)) * error
    return row | {
        "slope": round(mean, 3),
        "slope_90": [round(mean - half, 3), round(mean + half, 3)],
        "slope_of_seeds": [round(slope, 3) for slope in slopes],
    }


Laws = list[tuple[float, float]]  # (a, b) of each recipe


def _fit(means: np.ndarray[Any, Any], flops: Sequence[float]) -> tuple[float, Laws]:
    """Return the floor and the laws of means (recipes, sizes). C is in units of the least FLOPs."""
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


def _multiplier(laws: Laws, c: float) -> float:
    """Return how many times the compute the second recipe needs for what the first has with `c`."""
    (a, b), (a_other, b_other) = laws
    return (a_other / a) ** (1 / b_other) * c ** (b / b_other - 1)


def _slope(laws: Laws) -> float:
    (_, b), (_, b_other) = laws
    return b / b_other - 1
