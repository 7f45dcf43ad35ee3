"""Agreement with labels: ties count half, prompts are the sample, changes are paired."""

import math

import numpy as np
import pytest

from pion.evaluation.agreement import LabelledAnswers, agreement, changed, moved
from pion.evaluation.shares import share_sem


def pairs(tokens, prompts=None):
    """Return pairs with so many tokens in the chosen and the rejected answer."""
    numbers = list(range(len(tokens))) if prompts is None else prompts
    return LabelledAnswers(
        np.array(tokens).reshape(-1),
        np.array([True, False] * len(tokens)),
        np.repeat(numbers, 2),
        paired=True,
    )


def sums(*values):
    return np.array(values, dtype=float).reshape(-1)


def test_a_pair_is_right_if_the_chosen_answer_is_ahead_and_a_tie_counts_half():
    labels = pairs([(3, 3)] * 4)
    scored = labels.scored(sums((-1, -2), (-2, -1), (-1, -1), (math.nan, -1)))
    assert scored.scores[:3].tolist() == [1, 0, 0.5]
    assert math.isnan(scored.scores[3])
    assert labels.items == 4


def test_a_single_answer_is_right_if_it_moved_to_its_side():
    labels = LabelledAnswers(
        np.ones(5, dtype=int), np.array([True, True, False, False, True]), np.arange(5), False
    )
    assert labels.scored(np.array([0.1, -0.1, -0.1, 0.1, 0.0])).scores.tolist() == [1, 0, 1, 0, 0.5]
    assert labels.items == 5
    assert agreement(labels, labels.scored(np.ones(5))).keys() == {"accuracy", "accuracy_sem"}


def test_pairs_of_one_prompt_are_no_more_certain_than_one_of_them():
    values = [(1.0, 0.0)] * 6 + [(0.0, 1.0)] * 4
    once = pairs([(2, 3)] * 10)
    thrice = pairs([(2, 3)] * 30, [n for n in range(10) for _ in range(3)])
    apart = pairs([(2, 3)] * 30)
    one = agreement(once, once.scored(sums(*values)))
    tripled = sums(*(value for value in values for _ in range(3)))
    same, certain = (agreement(labels, labels.scored(tripled)) for labels in (thrice, apart))
    assert one["accuracy"] == same["accuracy"] == certain["accuracy"] == 0.6
    assert same["accuracy_sem"] == pytest.approx(one["accuracy_sem"])
    assert certain["accuracy_sem"] < 0.6 * same["accuracy_sem"]


def test_that_all_are_right_is_no_certainty():
    labels = pairs([(2, 3)] * 9)
    found = agreement(labels, labels.scored(sums(*[(1, 0)] * 9)))
    assert found["accuracy"] == 1
    assert found["accuracy_sem"] == share_sem(1, 9) > 0
    assert changed(labels, *[labels.scored(sums(*[(1, 0)] * 9))] * 2)["accuracy_sem"] > 0


def test_the_length_bias_is_the_accuracy_of_longer_ones_less_that_of_shorter_ones():
    labels = pairs([(5, 1)] * 4 + [(1, 5)] * 5 + [(3, 3)])
    right = [(1, 0)] * 3 + [(0, 1)] + [(1, 0)] * 2 + [(0, 1)] * 3 + [(1, 0)]
    found = agreement(labels, labels.scored(sums(*right)))
    assert found["where_longer"] == 0.75
    assert found["where_shorter"] == 0.4
    assert found["length_bias"] == pytest.approx(0.35)
    variance = 10 / 9 * ((0.75 * 0.25) / 4 + (0.4 * 0.6) / 5)
    assert found["length_bias_sem"] == pytest.approx(math.sqrt(variance))


def test_prompts_with_pairs_of_both_lengths_are_not_counted_as_independent():
    """In each prompt, both pairs are right or both are wrong: the difference has no error but 0."""
    labels = pairs([(5, 1), (1, 5)] * 6, [n for n in range(6) for _ in range(2)])
    found = agreement(labels, labels.scored(sums(*([(1, 0)] * 6 + [(0, 1)] * 6))))
    assert found["length_bias"] == pytest.approx(0)
    assert found["where_longer_sem"] > 0.2
    assert found["length_bias_sem"] < found["where_longer_sem"]


def test_without_pairs_of_both_lengths_nothing_is_said_of_length():
    labels = pairs([(1, 5)] * 5)
    found = agreement(labels, labels.scored(sums(*[(1, 0)] * 5)))
    assert found.keys() == {"accuracy", "accuracy_sem", "where_shorter", "where_shorter_sem"}
    scored = labels.scored(sums(*[(1, 0)] * 5))
    assert changed(labels, scored, scored).keys() == {"accuracy", "accuracy_sem"}


def test_the_error_of_a_change_is_that_of_the_same_pairs():
    """The two models agree on all pairs but two, so their difference is nearly certain."""
    right = np.random.default_rng(0).random(200) < 0.5
    better = right.copy()
    better[np.flatnonzero(~right)[:2]] = True
    labels = pairs([(5, 1), (1, 5)] * 100)
    before, after = (
        labels.scored(sums(*[(1.0, 0.0) if one else (0.0, 1.0) for one in side]))
        for side in (right, better)
    )
    change = changed(labels, before, after)
    assert change["accuracy"] == pytest.approx(0.01)
    assert change["accuracy_sem"] < 0.25 * agreement(labels, before)["accuracy_sem"]
    biases = [agreement(labels, side)["length_bias"] for side in (before, after)]
    assert change["length_bias"] == pytest.approx(biases[1] - biases[0])
    assert change["length_bias_sem"] < 0.25 * agreement(labels, before)["length_bias_sem"]


def test_what_is_not_finite_has_no_accuracy():
    labels = pairs([(5, 1), (1, 5)] * 2)
    found = agreement(labels, labels.scored(np.full(8, np.nan)))
    assert math.isnan(found["accuracy"])
    assert math.isnan(found["length_bias"])


def test_answers_have_moved_by_nats_per_token_on_each_side():
    found = moved(pairs([(4, 2), (6, 2)]), np.array([1.0, -2.0, 4.0, -4.0]))
    assert found["chosen"] == pytest.approx(0.5)  # 5 nats over 10 tokens
    assert found["rejected"] == pytest.approx(-1.5)
    assert found["chosen_sem"] > 0
    alone = LabelledAnswers(np.array([2]), np.array([True]), np.array([0]), False)
    assert moved(alone, np.array([1.0])).keys() == {"chosen", "chosen_sem"}


def test_the_rule_of_length_counts_equal_lengths_half():
    assert pairs([(5, 1), (1, 5), (3, 3), (7, 3)]).longer_wins().scores.tolist() == [1, 0, 0.5, 1]
