"""The slope of a recipe's gain is found again in made-up races."""

from __future__ import annotations

import random

import pytest

from benchmarks.recipe_scaling import scaling

FLOPS = [1e12, 3e12, 16e12, 70e12]
FLOOR = 1.0


def losses(a: float, b: float, seed: int) -> dict[str, list[float]]:
    noise = random.Random(seed)
    return {
        str(number): [FLOOR + a * (c / FLOPS[0]) ** -b + noise.gauss(0, 0.002) for c in FLOPS]
        for number in range(5)
    }


def test_a_gain_that_shrinks_has_a_slope_below_zero() -> None:
    found = scaling({"old": losses(1.4, 0.20, 1), "new": losses(1.2, 0.17, 2)}, FLOPS, "old")
    new = found["recipes"]["new"]
    assert new["slope"] == pytest.approx(0.17 / 0.20 - 1, abs=0.05)
    assert new["slope_90"][0] < new["slope"] < new["slope_90"][1] < 0
    assert new["multiplier"] == sorted(new["multiplier"], reverse=True)
    # old reaches 1.2 with (1.4 / 1.2)^(1 / 0.2) = 2.16 times the FLOPs of the least
    assert new["multiplier"][0] == pytest.approx(2.16, rel=0.1)


def test_a_constant_gain_has_no_slope() -> None:
    found = scaling({"old": losses(1.4, 0.18, 1), "new": losses(1.2, 0.18, 2)}, FLOPS, "old")
    low, high = found["recipes"]["new"]["slope_90"]
    assert low < 0 < high
