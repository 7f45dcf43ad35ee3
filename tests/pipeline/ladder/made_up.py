"""Ladders of a law that is known, with the noise of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.ladder.law import Law, Point
from pipeline.ladder.prediction import Fit
from pipeline.ladder.record import LadderRecord, ladder_file
from pipeline.state.stores import Store

# Multiply-accumulates per token, and tokens, of a ladder of 16 runs on a CPU.
SIZES = (500_000, 1_000_000, 2_400_000, 4_950_000)
LENGTHS = (250_000, 1_000_000, 4_000_000, 8_000_000)
# The noise of a seed in bits per byte. That of paired differences is √2 times as large: 0.0113
# (benchmarks/results/families.json).
NOISE = 0.008


def law_through(E: float, alpha: float, beta: float, middle: float = 2.2) -> Law:
    """Return the law with these numbers and, in the middle of the ladder, `middle` bits per byte,
    of which size and length cause the same."""
    half = (middle - E) / 2
    return Law(E, half * 1.5e6**alpha, alpha, half * 2e6**beta, beta)


LAWS = (law_through(0.8, 0.35, 0.35), law_through(1.2, 0.35, 0.3), law_through(1.5, 0.5, 0.5))


def keep_ladder(store: Store, fitted: Fit | None, settings: Mapping[str, Any]) -> None:
    """Keep the record of a ladder called `small` in a store."""
    ladder_file(store, "small").write(LadderRecord(settings, (), fit=fitted))


def ladder(
    law: Law,
    noise: float = 0.0,
    seed: int = 0,
    *,
    sizes: Sequence[int] = SIZES,
    lengths: Sequence[int] = LENGTHS,
) -> list[Point]:
    """Return the results of a run of each size and length, as the law says, with noise in bits per
    byte."""
    rng = np.random.default_rng(seed)
    return [
        Point(f"{n}-{d}", n, d, law.loss(n, d) + noise * float(rng.normal()))
        for n in sizes
        for d in lengths
    ]
