"""Successive halving on recorded curves: what it costs, and how good its choice is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest

from pipeline.ladder.halving import (
    SHARE,
    Choice,
    Curves,
    Wanted,
    compare,
    decide,
    plan_rounds,
    rank,
    steps_taken,
)

STEPS = 480
# Of paired differences between seeds, in nats per token: 0.0113 bits per byte and 3 bytes a token.
NOISE = 0.017


def recorded(
    final: Mapping[str, float], seeds: int, rng: np.random.Generator, *, bias: float = 0.0
) -> Curves:
    """Return curves that end near `final`. All settings share the noise of a seed.

    A setting that ends lower by `bias` for each 1 of its number starts higher: its rate is larger.
    """
    shared = rng.normal(0.0, 0.05, seeds)
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for number, (setting, end) in enumerate(final.items()):
        for seed in range(seeds):
            own = rng.normal(0.0, NOISE / math.sqrt(2))
            curves.setdefault(setting, {})[seed] = {
                step: end
                + shared[seed]
                + own * math.sqrt(step / STEPS)
                + 3.0 * (step + 20.0) ** -0.5
                + bias * number * (1 - step / STEPS)
                + rng.normal(0.0, NOISE / 4)
                for step in range(1, STEPS + 1)
            }
    return curves


@pytest.mark.parametrize("settings", [2, 3, 4, 5, 6, 9, 12, 16, 33, 64])
@pytest.mark.parametrize("steps", [60, 480, 100_001])
def test_the_rounds_take_at_most_two_fifths_of_the_grid(settings: int, steps: int) -> None:
    rounds = plan_rounds(settings, steps)
    assert steps_taken(rounds) <= SHARE * settings * steps
    assert rounds[0].settings == settings
    assert (rounds[-1].settings, rounds[-1].keep) == (2, 1)
    assert all(b.step == 2 * a.step for a, b in itertools.pairwise(rounds))
    assert all(b.settings == a.keep for a, b in itertools.pairwise(rounds))
    assert rounds[-1].step <= steps


def test_with_many_settings_the_last_two_train_to_the_end() -> None:
    assert plan_rounds(12, 480)[-1].step == 480


@pytest.mark.parametrize(("settings", "steps"), [(1, 480), (2, 1), (64, 5)])
def test_too_few_settings_or_steps_have_no_rounds(settings: int, steps: int) -> None:
    with pytest.raises(ValueError, match=r"few|two"):
        plan_rounds(settings, steps)


@pytest.mark.parametrize(
    "final",
    [
        {"a": 3.30, "b": 3.25, "c": 3.31},
        {"a": 3.25, "b": 3.255, "c": 3.26},  # nothing tells these apart
        {"a": 3.25, "b": 3.28},
        {str(n): 3.2 + 0.02 * abs(n - 5) for n in range(9)},
        {str(n): 3.2 + 0.005 * n for n in range(16)},
    ],
)
def test_the_choice_is_as_good_as_the_grids_best_in_nine_of_ten_repetitions(
    final: Mapping[str, float],
) -> None:
    good, repetitions = 0, 60
    rounds = plan_rounds(len(final), STEPS)
    for repetition in range(repetitions):
        curves = recorded(final, 3, np.random.default_rng(repetition))
        chosen = decide(curves, rounds)
        assert isinstance(chosen, Choice)
        ends = {s: [curve[STEPS] for curve in by_seed.values()] for s, by_seed in curves.items()}
        best = rank(ends)[0]
        if best == chosen.setting:
            good += 1
            continue
        paired = np.array(ends[chosen.setting]) - np.array(ends[best])
        good += paired.mean() <= 2 * paired.std(ddof=1) / math.sqrt(len(paired))
    assert good >= 0.9 * repetitions


def test_what_is_wanted_is_what_the_round_lacks_and_nothing_that_was_dropped() -> None:
    rounds = plan_rounds(4, 480)
    first, last = (one.step for one in rounds)
    losses = {"a": 3.0, "b": 2.0, "c": 4.0, "d": 2.5}
    curves: dict[str, dict[int, dict[int, float]]] = {s: {0: {}, 1: {}} for s in losses}
    assert decide(curves, rounds) == Wanted(first, tuple((s, n) for s in "abcd" for n in (0, 1)))
    for setting, loss in losses.items():
        curves[setting] = {0: {first: loss}, 1: {first: loss}}
    del curves["c"][1][first]
    assert decide(curves, rounds) == Wanted(first, (("c", 1),))
    curves["c"][1][first] = 4.0
    assert decide(curves, rounds) == Wanted(last, (("b", 0), ("b", 1), ("d", 0), ("d", 1)))


def test_the_order_of_settings_and_later_measures_change_nothing() -> None:
    curves = recorded({"a": 3.3, "b": 3.2, "c": 3.25}, 3, np.random.default_rng(0))
    rounds = plan_rounds(3, STEPS)
    kept = {one.step for one in rounds}
    cut = {
        setting: {
            seed: {step: loss for step, loss in curve.items() if step in kept}
            for seed, curve in reversed(by_seed.items())
        }
        for setting, by_seed in reversed(curves.items())
    }
    assert decide(cut, rounds) == decide(curves, rounds)


def test_a_setting_that_diverged_comes_last_and_does_not_widen_the_errors_of_others() -> None:
    rng = np.random.default_rng(1)
    finite = recorded({"a": 3.0, "b": 3.2}, 4, rng)
    losses = {s: [curve[STEPS] for curve in by_seed.values()] for s, by_seed in finite.items()}
    with_nan = losses | {"c": [2.0, math.inf, 2.0, 2.0]}
    assert rank(with_nan) == ["a", "b", "c"]
    assert compare(with_nan, "a", "b", 1) == compare(losses, "a", "b", 1)
    assert compare(with_nan, "a", "c", 1).diverged


def test_the_error_of_a_difference_leaves_out_what_seeds_share() -> None:
    losses = {"a": [3.0, 4.0, 5.0], "b": [3.1, 4.1, 5.1], "c": [3.0, 4.02, 4.98]}
    found = compare(losses, "a", "b", 7)
    assert found.step == 7
    assert found.mean == pytest.approx(-0.1)
    assert found.sem < 0.02
    assert found.sure
    assert not compare(losses, "a", "c", 7).sure


def test_one_seed_tells_nothing_from_noise() -> None:
    found = compare({"a": [3.0], "b": [3.5]}, "a", "b", 1)
    assert not found.sure
    assert math.isinf(found.sem)
