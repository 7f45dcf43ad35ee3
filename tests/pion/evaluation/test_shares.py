import math

import numpy as np
import pytest

from pion.evaluation.shares import share_of, share_sem, wilson


def bits(hits, n):
    return np.arange(n) < hits


@pytest.mark.parametrize(("hits", "n"), [(0, 32), (32, 32), (1, 1), (7, 90)])
def test_the_interval_is_wilsons_and_never_empty(hits, n):
    found = share_of(bits(hits, n))
    assert found.share == hits / n
    assert (found.low, found.high) == wilson(hits / n, n)
    assert found.sem > 0
    assert share_of(bits(0, 0)) is None


def test_questions_about_one_passage_count_as_little_more_than_one():
    """Ten questions of each passage that agree with each other say as much as one question."""
    agrees, passages = np.repeat(bits(30, 100), 10), [f"passage {n // 10}" for n in range(1000)]
    alone, together = share_of(agrees), share_of(agrees, passages)
    assert together.share == alone.share
    assert together.sem / alone.sem == pytest.approx(np.sqrt(10), rel=0.02)
    # Where no case agrees, the passages are counted.
    assert share_of(bits(0, 1000), passages).high == wilson(0, 100)[1]
    # Cases without a passage stand alone, and independent cases in passages keep their error.
    mixed = share_of(bits(300, 1000), ["a", "a", *([""] * 998)])
    assert mixed.sem == pytest.approx(share_of(bits(300, 1000)).sem, rel=0.01)
    apart = np.random.default_rng(0).random(4000) < 0.3
    in_passages = share_of(apart, [f"{n // 4}" for n in range(4000)])
    assert in_passages.sem == pytest.approx(share_of(apart).sem, rel=0.06)


def test_errors_are_binomial_and_never_zero():
    assert share_sem(0.25, 4) == pytest.approx(math.sqrt(3 / 64))
    # Half of Wilson's interval for z = 1.
    assert share_sem(0, 20) == share_sem(1, 20) == pytest.approx(1 / 42)
