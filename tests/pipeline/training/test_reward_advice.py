"""What a run says of rewards from which nothing, or something else, is learned."""

import numpy as np
import pytest

from pipeline.training.learning_advice import WINDOW, LearningAdvice
from pipeline.training.reward_advice import FLAT_STEPS

GOOD = {"reward": 0.5, "pass": 0.5, "signal": 0.8, "unfinished": 0.1, "entropy": 2.0}
GOOD |= {"mismatch": 1e-6, "answer_tokens": 40.0}


def steps(first, stop, rise=0.01, **numbers):
    """Return the rows of these steps: good ones whose reward rises, but for `numbers`."""
    return [
        {"step": step, "lr": 1e-6, **GOOD, "reward": 0.2 + rise * step, **numbers}
        for step in range(first, stop)
    ]


def warned(rows):
    said = []
    LearningAdvice(lambda *one: said.append(one), steps=rows[-1]["step"]).trained(rows)
    return said


def test_steps_that_go_well_are_not_warned_of():
    assert warned(steps(1, 80)) == []
    assert warned(steps(1, WINDOW, signal=0.0)) == []  # too few to judge


@pytest.mark.parametrize(
    ("numbers", "name", "words"),
    [
        ({"signal": 0.04, "pass": 0.01}, "signal", "Nearly all answers are wrong"),
        ({"signal": 0.04, "pass": 0.99}, "signal", "Nearly all answers are right"),
        ({"unfinished": 0.3}, "unfinished", "Raise reinforce.max_tokens"),
        ({"unfinished": 0.3, "reward": 0.1}, "unfinished", "Lower reinforce.lr"),
        ({"entropy": 0.1}, "entropy", "has fallen from 2 to 0.1 nats per token"),
        ({"mismatch": 0.06}, "mismatch", "more or less likely in training"),
        ({"answer_tokens": 15.0}, "length", "and had 40, while the reward rises"),
    ],
)
def test_what_goes_wrong_is_said_once(numbers, name, words):
    ((step, named, text),) = warned([*steps(1, 20), *steps(20, 40, **numbers)])
    assert (named, words in text) == (name, True), text
    assert step < 20 + WINDOW


@pytest.mark.parametrize(
    ("rise", "words"),
    [(0.0, "Raise reinforce.lr to three times 2e-06"), (-0.01, "Lower reinforce.lr")],
)
def test_a_reward_that_stays_flat_or_falls_is_said_after_half_of_enough_steps(rise, words):
    for stop, at in ((2 * FLAT_STEPS, FLAT_STEPS), (2 * FLAT_STEPS - 2, 2 * FLAT_STEPS - 2)):
        ((step, name, text),) = warned(with_noise(rise, [0.0, 0.01] * (stop // 2)))
        assert (step, name, words in text) == (at, "flat", True)
    assert warned(with_noise(rise, [0.0] * (FLAT_STEPS - 1))) == []


def test_the_first_quarter_is_compared_with_the_last():
    ((step, _, text),) = warned(with_noise(0.0, [0.3] * 75 + [-0.1] * 25))
    assert step == 100
    assert "it was 0.500 in the first quarter of the steps, and is 0.100 in the last" in text


def test_a_run_that_was_told_to_lower_its_rate_is_not_told_to_raise_it():
    begin, middle = steps(1, 31, 0.0), steps(31, 51, 0.0, unfinished=0.3, reward=0.1)
    said = warned([*begin, *middle, *steps(51, 101, 0.0)])
    assert [name for _, name, _ in said] == ["unfinished"]


def test_few_runs_that_learn_and_most_of_the_others_are_called_flat():
    noise = np.random.default_rng(0).normal(0, 0.035, (10, 120))
    learn, flat = ([with_noise(rise / 120, one) for one in noise] for rise in (0.1, 0.0))
    assert sum(warned(rows) != [] for rows in learn) <= 1
    assert sum(warned(rows) != [] for rows in flat) >= 8


def with_noise(rise, noise):
    """Return steps with noise in their rewards; the rate falls."""
    rows = steps(1, len(noise) + 1, rise)
    for row, error in zip(rows, noise, strict=True):
        row["reward"] += error
        row["lr"] = 2e-6 if 3 * row["step"] < len(noise) else 1e-6
    return rows
