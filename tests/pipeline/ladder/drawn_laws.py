"""Ladders of laws that are drawn at random, and how many results their intervals hold.

Each ladder of 16 runs has a law of its own: its floor, its exponents, how much of the loss size and
length cause, and the noise of a run. Its runs are four sizes and four lengths, as far apart as
those of `pion ladder` or further. Then runs with 12 to 100 times the FLOPs of its largest run are
predicted, and their results are drawn from the law with the same noise.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.ladder.law import Law, Point
from pipeline.ladder.prediction import fit

# By which factors the predicted runs are larger and longer than the largest run.
BEYOND = ((2, 6), (6, 2), (5, 5), (3, 15), (15, 3), (10, 10))
# A run of the middle of the ladder: its multiplications, its tokens, and its bits per byte.
MIDDLE = (1.5e6, 2e6, 2.2)


def drawn(rng: np.random.Generator) -> tuple[Law, float, list[Point]]:
    """Return a law, the noise of a run in bits per byte, and the results of a ladder's runs."""
    macs, tokens, middle = MIDDLE
    floor, alpha, beta = rng.uniform((0.3, 0.2, 0.2), (1.8, 0.6, 0.6))
    of_size = rng.uniform(0.3, 0.7) * (middle - floor)
    law = Law(floor, of_size * macs**alpha, alpha, (middle - floor - of_size) * tokens**beta, beta)
    noise = float(np.exp(rng.uniform(math.log(0.002), math.log(0.02))))
    larger, longer = rng.uniform(2.0, 2.8), rng.uniform(2.0, 3.2)
    points = [
        Point(f"{i}-{j}", n, d, law.loss(n, d) + noise * float(rng.normal()))
        for i in range(4)
        for j in range(4)
        for n, d in [(round(macs * larger ** (i - 1.5)), round(tokens * longer ** (j - 1.5)))]
    ]
    return law, noise, points


def share_held(ladders: int) -> float:
    """Return the share of results beyond so many ladders that 90 % intervals hold."""
    held = []
    for seed in range(ladders):
        rng = np.random.default_rng(seed)
        law, noise, points = drawn(rng)
        found = fit(points)
        for larger, longer in BEYOND:
            macs, tokens = points[-1].macs_per_token * larger, points[-1].tokens * longer
            said = found.predict(macs, tokens)
            held.append(said.low <= law.loss(macs, tokens) + noise * rng.normal() <= said.high)
    return float(np.mean(held))
