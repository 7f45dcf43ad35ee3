"""Successive halving on recorded curves: what it costs, and how good its choice is."""

import itertools
import math

import numpy as np
import pytest

from pipeline.search.halving import (
    SHARE,
    Round,
    Wanted,
    compare,
    decide,
    plan_rounds,
    rank,
    steps_taken,
)
from tests.pipeline.search.fake_runs import ROWS

STEPS = 480
# Of paired differences between seeds, in nats per token: 0.0113 bits per byte and 3 bytes a token.
NOISE = 0.017


def recorded(final, seeds, rng):
    """Return curves that end near `final`. All settings share the noise of a seed."""
    shared = rng.normal(0.0, 0.05, seeds)
    curves = {}
    for setting, end in final.items():
        for seed in range(seeds):
            own = rng.normal(0.0, NOISE / math.sqrt(2))
            curves.setdefault(setting, {})[seed] = {
                step: end
                + shared[seed]
                + own * math.sqrt(step / STEPS)
                + 3.0 * (step + 20.0) ** -0.5
                + rng.normal(0.0, NOISE / 4)
                for step in range(1, STEPS + 1)
            }
    return curves


def at_step(step, losses):
    """Return curves with one step: the losses of each setting's seeds."""
    return {s: {n: {step: loss} for n, loss in enumerate(own)} for s, own in losses.items()}


def compared(losses, sources=1):
    """Compare settings with the first one at the end of their only round."""
    when = Round(1, len(losses), len(losses["a"]))
    return compare(at_step(1, losses), dict.fromkeys(losses, when), when, sources).others


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 10])
def test_the_rounds_take_at_most_two_fifths_of_the_grid(seeds):
    sizes = itertools.product([2, 3, 4, 5, 6, 9, 12, 16, 33, 64], [60, 480, 100_001])
    for settings, steps in sizes:
        rounds = plan_rounds(settings, steps, seeds)
        assert steps_taken(rounds) <= SHARE * settings * seeds * steps
        assert rounds[0].settings == settings
        assert all(a.step < b.step for a, b in itertools.pairwise(rounds))
        assert seeds < 3 or rounds[-1].step == steps


@pytest.mark.parametrize("row", ROWS["rounds"], ids=str)
def test_a_third_of_the_seeds_decides_at_half_and_at_the_end(row):
    assert plan_rounds(row["settings"], 480, row["seeds"]) == [Round(*r) for r in row["rounds"]]
    assert not plan_rounds(row["settings"], 1, row["seeds"]), "too few steps"
    assert not plan_rounds(row["settings"], 9, 3)
    # Two more seeds of 6 settings to 48; the first seed of 6 to 240, and of 3 to 480.
    assert steps_taken(plan_rounds(6, 480, 3)) == 2 * 6 * 48 + 6 * 240 + 3 * 240


@pytest.mark.parametrize(
    "final",
    [
        {"a": 3.30, "b": 3.25, "c": 3.31},
        {"a": 3.25, "b": 3.255, "c": 3.26},  # nothing tells these apart
        {"a": 3.25, "b": 3.28},
        pytest.param({str(n): 3.2 + 0.02 * abs(n - 5) for n in range(9)}, marks=pytest.mark.soak),
        pytest.param({str(n): 3.2 + 0.005 * n for n in range(16)}, marks=pytest.mark.soak),
    ],
)
def test_the_choice_is_as_good_as_the_grids_best_in_nine_of_ten_repetitions(final):
    good, repetitions = 0, 60
    rounds = plan_rounds(len(final), STEPS, 3)
    for repetition in range(repetitions):
        curves = recorded(final, 3, np.random.default_rng(repetition))
        chosen = next(iter(decide(curves, rounds)))
        ends = {s: [curve[STEPS] for curve in by_seed.values()] for s, by_seed in curves.items()}
        paired = np.array(ends[chosen]) - np.array(ends[rank(ends)[0]])
        good += paired.mean() <= 2 * paired.std(ddof=1) / math.sqrt(len(paired))
    assert good >= 0.9 * repetitions


@pytest.fixture
def rounds():
    return plan_rounds(4, 480, 3)


@pytest.fixture
def begun(rounds):
    """Four settings after the first round."""
    ends = {"a": 3.0, "b": 2.0, "c": 4.0, "d": 2.5}
    return at_step(rounds[0].step, {s: [end, end + 1, end + 2] for s, end in ends.items()})


def test_what_is_wanted_is_what_the_round_lacks_and_nothing_that_was_dropped(rounds, begun):
    noise, half, end = rounds
    nothing = {s: {n: {} for n in range(3)} for s in "abcd"}
    every = tuple((s, n) for s in "abcd" for n in range(3))
    assert decide(nothing, rounds) == Wanted(noise.step, every)
    del begun["c"][1][noise.step]
    assert decide(begun, rounds) == Wanted(noise.step, (("c", 1),))
    begun["c"][1][noise.step] = 5.0
    assert decide(begun, rounds) == Wanted(half.step, tuple((s, 0) for s in "bdac"))
    for setting, loss in {"a": 1.0, "b": 1.3, "c": 1.1, "d": 1.2}.items():
        begun[setting][0][half.step] = loss
    assert decide(begun, rounds) == Wanted(end.step, (("a", 0), ("c", 0)))
    begun["a"][0][end.step], begun["c"][0][end.step] = 0.9, 0.8
    ranking = decide(begun, rounds)
    assert list(ranking.items()) == [("c", end), ("a", end), ("d", half), ("b", half)]
    choice = compare(begun, ranking, noise)
    assert (choice.setting, choice.step) == ("c", end.step)
    assert [d.step for d in choice.others] == [end.step, half.step, half.step]


def test_a_setting_that_diverges_with_any_seed_trains_no_further(rounds, begun):
    noise, half, _ = rounds
    begun["b"][2][noise.step] = math.inf
    assert decide(begun, rounds) == Wanted(half.step, (("d", 0), ("a", 0), ("c", 0)))
    for setting in "ac":
        begun[setting][0][noise.step] = math.nan
    alone = compare(begun, decide(begun, rounds), noise)
    assert (alone.setting, alone.step) == ("d", noise.step)
    assert all(other.diverged for other in alone.others)


def test_the_noise_is_that_of_all_seeds_at_a_tenth_of_the_steps():
    rounds = plan_rounds(3, 480, 3)
    curves = recorded({"a": 3.0, "b": 3.2, "c": 3.4}, 3, np.random.default_rng(0))
    early = {s: [curve[rounds[0].step] for curve in each.values()] for s, each in curves.items()}
    sem = compared(early)[0].sem * math.sqrt(3)  # of one seed in place of three
    choice = compare(curves, decide(curves, rounds), rounds[0])
    assert [d.sem for d in choice.others] == pytest.approx([sem, sem])


def test_the_order_of_settings_and_later_measures_change_nothing():
    curves = recorded({"a": 3.3, "b": 3.2, "c": 3.25}, 3, np.random.default_rng(0))
    rounds = plan_rounds(3, STEPS, 3)
    cut = {
        setting: {n: {r.step: by_seed[n][r.step] for r in rounds} for n in reversed(by_seed)}
        for setting, by_seed in reversed(curves.items())
    }
    ranking = decide(curves, rounds)
    assert list(decide(cut, rounds).items()) == list(ranking.items())
    (others,), (again,) = ((compare(c, ranking, rounds[0]).others,) for c in (cut, curves))
    assert [d.difference for d in others] == [d.difference for d in again]


def test_a_setting_that_diverged_comes_last_and_does_not_widen_the_errors_of_others():
    losses = {"a": [3.0, 3.1, 3.0, 3.2], "b": [3.2, 3.3, 3.3, 3.4]}
    with_inf = losses | {"c": [2.0, math.inf, 2.0, 2.0]}
    assert rank(with_inf) == ["a", "b", "c"]
    (other,), (same, diverged) = compared(losses), compared(with_inf)
    assert (same.difference, same.sem) == (other.difference, other.sem)
    assert diverged.diverged
    with np.errstate(invalid="raise"):
        (both,) = compared({"a": [math.inf, 3.0], "b": [math.inf, 3.0]})
    assert both.diverged


def test_the_error_of_a_difference_leaves_out_what_seeds_share():
    larger, same = compared({"a": [3.0, 4.0, 5.0], "b": [3.1, 4.1, 5.1], "c": [3.0, 4.02, 4.98]})
    assert larger.difference == pytest.approx(-0.1)
    assert larger.sem < 0.02
    assert larger.sure
    assert not same.sure
    (of_one_seed,) = compared({"a": [3.0], "b": [3.5]})
    assert math.isinf(of_one_seed.sem)
    assert not of_one_seed.sure


@pytest.mark.parametrize("settings", [2, 6, 12])
def test_settings_that_are_the_same_are_told_apart_in_at_most_one_of_twenty_searches(settings):
    rounds, searches, wrong = plan_rounds(settings, STEPS, 3), 500, 0
    steps = [each.step for each in rounds]
    rng = np.random.default_rng(settings)
    for _ in range(searches):
        # The noise of each step is its own, which leaves most to luck.
        drawn = rng.normal(3.0, NOISE, (settings, 3, len(steps))) + rng.normal(0, 0.05, (3, 1))
        curves = {
            str(setting): {seed: dict(zip(steps, own)) for seed, own in enumerate(by_seed)}
            for setting, by_seed in enumerate(drawn.tolist())
        }
        choice = compare(curves, decide(curves, rounds), rounds[0])
        wrong += any(other.sure for other in choice.others)
    # Two errors of so many searches above 5 %; and not much more careful than needed.
    assert 0.01 * searches <= wrong <= (0.05 + 2 * math.sqrt(0.05 * 0.95 / searches)) * searches


# Of 4 degrees of freedom, 95 % and 99 % lie between ± this.
@pytest.mark.parametrize(("sources", "student"), [(1, 2.776), (5, 4.604)])
def test_of_two_settings_the_limit_is_students_t_and_sources_share_what_may_be_wrong(
    sources, student
):
    apart = np.random.default_rng(0).normal(0, NOISE, 5)
    apart -= apart.mean()
    sem = float(apart.std(ddof=1)) / math.sqrt(5)
    for factor, sure in ((0.99, False), (1.01, True)):
        second = (3.0 + apart + factor * student * sem).tolist()
        (other,) = compared({"a": [3.0] * 5, "b": second}, sources)
        assert other.sem == pytest.approx(sem)
        assert other.sure is sure
