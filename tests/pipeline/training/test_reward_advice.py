"""What a run says of rewards from which nothing, or something else, is learned."""

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
    LearningAdvice(lambda *one: said.append(one)).trained(rows)
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


def test_a_reward_that_stays_flat_or_falls_is_said_after_enough_steps():
    for rise, words in ((0.0, "Raise reinforce.lr to three times 1e-06"), (-0.01, "Lower rein")):
        rows = steps(1, 100, rise)
        for row in rows:
            row["reward"] += 0.01 * (row["step"] % 2)
        ((step, name, text),) = warned(rows)
        assert (step, name, words in text) == (FLAT_STEPS, "flat", True)
