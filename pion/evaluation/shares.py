"""A share of cases, with an interval that also holds where none or all of few cases agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# An interval of 95 % has so many standard errors on each side.
Z = 1.96


class Share(NamedTuple):
    """A share of cases, and Wilson's interval of 95 %: from `low` to `high`."""

    share: float
    low: float
    high: float

    @property
    def sem(self) -> float:
        """The standard error that belongs to the interval; never 0, as the binomial one can be."""
        return (self.high - self.low) / (2 * Z)


def share_of(agrees: np.ndarray, clusters: Sequence[str] = ()) -> Share | None:
    """Return the share of cases that agree; None if there is no case.

    Cases with the same cluster ("" is none) are not independent: then the interval is that of so
    many independent cases as have the standard error of the ratio over clusters (Cochran, Sampling
    Techniques, 3rd ed., eq. 2.45; Korn and Graubard 1998). If no or every case agrees, the clusters
    are the cases.
    """
    n = len(agrees)
    if n == 0:
        return None
    share = int(np.count_nonzero(agrees)) / n
    return Share(share, *wilson(share, _independent(np.asarray(agrees, dtype=float), clusters)))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of `n` cases (Wilson 1927, JASA 22)."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_sem(share: float, n: int) -> float:
    """Return the binomial standard error of a share of `n` cases.

    Where none or all agree, that would be 0; it is half of Wilson's interval (z = 1) instead: none
    of 32 does not mean that none ever is.
    """
    return 0.5 / (n + 1) if share in (0, 1) else math.sqrt(share * (1 - share) / n)


def ratio(amounts: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return Σ amounts / Σ sizes over documents, and its standard error (NaN for a single one).

    The documents are a sample of clusters of unequal size, so this is the ratio estimator and its
    linearised variance (Cochran, Sampling Techniques, 3rd ed., eq. 2.45 and 6.13).
    """
    total, units = float(sizes.sum()), len(sizes)
    if total == 0:
        return math.nan, math.nan
    value = float(amounts.sum()) / total
    if units < 2:
        return value, math.nan
    residuals = amounts - value * sizes
    return value, math.sqrt(units / (units - 1) * float((residuals**2).sum())) / total


def plain_mean(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of values that were measured apart, and its standard error. Each value has
    its own."""
    values, errors = zip(*measured)
    return sum(values) / len(values), math.hypot(*errors) / len(values)


def share_ratio(hits: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return the share Σ hits / Σ sizes, and its standard error, as `ratio` does.

    Where no document differs from the others, such as where all cases agree, the error is not 0 but
    that of so many independent documents: see `share_sem`.
    """
    value, error = ratio(hits, sizes)
    return value, error if error != 0 else share_sem(value, int(np.count_nonzero(sizes)))


def _independent(agrees: np.ndarray, clusters: Sequence[str]) -> float:
    """Return how many independent cases say as much as these."""
    n = len(agrees)
    if not any(clusters):
        return n
    names = [cluster or f"\0{index}" for index, cluster in enumerate(clusters)]
    _, which = np.unique(names, return_inverse=True)
    sizes = np.bincount(which)
    share, error = ratio(np.bincount(which, agrees), sizes)
    if not error > 0:  # no or every case agrees, or there is one cluster
        return len(sizes)
    return min(n, max(1.0, share * (1 - share) / error**2))
