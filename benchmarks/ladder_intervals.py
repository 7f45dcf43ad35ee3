"""How many results of made-up laws the 90 % intervals of a ladder hold.

    uv run python -m benchmarks.ladder_intervals [--ladders 1000]

Each ladder of 16 runs has a law of its own, drawn at random: its floor, its exponents, how much of
the loss size and length cause, and the noise of a run. Its runs are four sizes and four lengths, as
far apart as those of `pion ladder` or further. Then runs with 12 to 100 times the FLOPs of its
largest run are predicted, and their results are drawn from the law with the same noise.

What is counted is how the interval does if the law is right. Where larger models learn something
else, no interval holds (docs/ladder.md). The result is in benchmarks/results/ladder_intervals.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ladder.fit import fit
from pipeline.ladder.law import Law
from pipeline.ladder.points import Point

RESULTS = Path(__file__).parent / "results" / "ladder_intervals.json"
# By which factors the predicted runs are larger and longer than the largest run.
BEYOND = ((2, 6), (6, 2), (5, 5), (3, 15), (15, 3), (10, 10))
# A run of the middle of the ladder: its multiplications, its tokens, and its bits per byte.
MIDDLE = (1.5e6, 2e6, 2.2)


def made_up(rng: np.random.Generator) -> tuple[Law, float, list[Point]]:
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


def held(ladders: int) -> Iterator[list[tuple[bool, float]]]:
    """Yield for each ladder whether an interval holds a result, and the width of the interval in
    units of the noise, for each run beyond the ladder."""
    for seed in range(ladders):
        rng = np.random.default_rng(seed)
        law, noise, points = made_up(rng)
        found, rows = fit(points), []
        for larger, longer in BEYOND:
            macs, tokens = points[-1].macs_per_token * larger, points[-1].tokens * longer
            said = found.predict(macs, tokens)
            result = law.loss(macs, tokens) + noise * float(rng.normal())
            rows.append((said.low <= result <= said.high, (said.high - said.low) / noise))
        yield rows


def summary(ladders: int) -> dict[str, Any]:
    """Return the share of results that intervals hold, with its error over ladders."""
    table = np.array(list(held(ladders)))
    shares, widths = table[:, :, 0], table[:, :, 1]
    return {
        "ladders": ladders,
        "held": round(float(shares.mean()), 3),
        "sem": round(float(shares.mean(axis=1).std(ddof=1)) / math.sqrt(ladders), 3),
        "by_run": {
            f"{larger} times as large, {longer} times as long": {
                "held": round(float(share), 3),
                "median_width_of_the_noise": round(float(width), 1),
            }
            for (larger, longer), share, width in zip(
                BEYOND, shares.mean(axis=0), np.median(widths, axis=0)
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ladders", type=int, default=1000)
    found = summary(parser.parse_args().ladders)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
