"""Scores of single questions: what is written is read again, and damage is named."""

import base64
import json
import math

import numpy as np
import pytest

from pion.evaluation.item_scores import ItemScores, difference, item_scores, mean, pack, unpack
from pion.evaluation.shares import share_sem

RANDOM = np.random.default_rng(0)


def test_what_is_packed_is_read_again_in_few_bytes():
    scores = RANDOM.integers(0, 2, 20_321).astype(float)
    scores[[5, 700]] = 0.5
    scores[9] = math.nan
    packed = json.dumps(pack(ItemScores(scores)))
    assert len(packed) < 4000
    np.testing.assert_array_equal(unpack(json.loads(packed)).scores, scores)


def test_passages_and_sizes_are_kept():
    found = unpack(pack(item_scores([1, 0, 1], ["b", "a", "b"])))
    assert found.clusters.tolist() == [1, 0, 1]
    documents = unpack(pack(ItemScores(np.array([2.5, 0.0]), sizes=np.array([7, 0]))))
    assert (documents.scores.tolist(), documents.sizes.tolist()) == ([2.5, 0.0], [7, 0])


def test_the_error_of_a_difference_is_that_of_a_bootstrap():
    before = RANDOM.random(4000) < 0.5
    after = np.where(RANDOM.random(4000) < 0.2, ~before, before)
    change, error = difference(item_scores(before), item_scores(after))
    differences = after.astype(float) - before
    values, counts = np.unique(differences, return_counts=True)
    drawn = RANDOM.multinomial(4000, counts / 4000, 10_000) @ values / 4000
    assert change == pytest.approx(differences.mean())
    assert error == pytest.approx(drawn.std(), rel=0.05)


def test_the_error_of_a_difference_of_documents_is_that_of_pairs():
    sizes = RANDOM.integers(50, 60, 40)
    before = RANDOM.normal(400, 90, 40)  # documents differ much more than the two models do
    after = before + RANDOM.normal(11, 2, 40)
    change, error = difference(*(ItemScores(nats, sizes=sizes) for nats in (before, after)))
    assert change == pytest.approx((after - before).sum() / sizes.sum())
    spread = (after - before - change * sizes).std(ddof=1) * math.sqrt(40) / sizes.sum()
    assert error == pytest.approx(spread, rel=1e-6)


def test_questions_about_one_passage_are_one_sample():
    before = np.zeros(400)
    after = np.repeat(RANDOM.integers(0, 2, 40), 10).astype(float)  # right on a whole passage
    passages = [str(n // 10) for n in range(400)]
    alone = difference(item_scores(before), item_scores(after))[1]
    together = difference(item_scores(before, passages), item_scores(after, passages))[1]
    drawn = RANDOM.choice(after.reshape(40, 10), (10_000, 40)).mean(axis=(1, 2))
    assert together == pytest.approx(drawn.std(), rel=0.05)
    assert together > 3 * alone


def test_equal_answers_to_few_questions_are_no_certainty():
    few, many = (item_scores(np.ones(n)) for n in (12, 12_000))
    assert difference(few, few) == (0, pytest.approx(0.5 / 13))
    assert difference(many, many)[1] < 1e-4
    assert mean(item_scores([1.0] * 9))[1] == share_sem(1, 9)
    assert mean(item_scores([0.0] * 9))[1] == share_sem(0, 9)


def test_documents_weigh_as_much_as_their_bytes():
    sizes = np.array([100, 300])
    before, after = (ItemScores(np.array(bits), sizes=sizes) for bits in ([50, 90], [40, 80]))
    assert difference(before, after)[0] == pytest.approx(-20 / 400)
    # Scores that are not numbers give no difference, and no scores no mean.
    assert math.isnan(difference(item_scores([1, 0]), item_scores([1, math.nan]))[0])
    assert all(map(math.isnan, mean(item_scores([]))))


@pytest.mark.parametrize(
    "other",
    [
        item_scores([1, 0]),
        item_scores([1, 0, 1], ["a", "a", "b"]),
        ItemScores(np.ones(3), sizes=np.array([1, 2, 3])),
    ],
)
def test_other_questions_are_not_compared(other):
    with pytest.raises(ValueError, match="not measured on the same"):
        difference(item_scores([1, 0, 1]), other)


GOOD = pack(ItemScores(np.array([1, 0.5, 0]), np.array([0, 0, 1]), np.array([1, 2, 3])))


@pytest.mark.parametrize(
    "damage",
    [
        {"n": -1},
        {"n": 10**12},
        {"n": True},
        {"n": 300},
        {"right": None},
        {"right": "§"},
        {"places": base64.b64encode(np.array([3], "<i4").tobytes()).decode()},
        {"scores": ""},
        {"clusters": base64.b64encode(np.array([0, 0, 9], "<i4").tobytes()).decode()},
        {"clusters": "AAAA"},
        {"sizes": base64.b64encode(np.array([1, 2, -3], "<i8").tobytes()).decode()},
    ],
)
def test_damaged_scores_are_refused(damage):
    unpack(GOOD)
    with pytest.raises(ValueError, match=r"\w"):
        unpack({**GOOD, **damage})


def test_the_mean_of_questions_about_one_passage_has_the_error_of_passages():
    scores, passages = [1.0, 0.0, 1.0, 1.0], ["a", "b", "c", "d"]
    alone = mean(item_scores(scores, passages))
    assert alone == (0.75, pytest.approx(0.25))  # the standard error of four numbers
    assert mean(item_scores(scores * 3, passages * 3)) == (0.75, pytest.approx(alone[1]))
