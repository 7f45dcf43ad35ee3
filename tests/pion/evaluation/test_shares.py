import math

import numpy as np
import pytest

from pion.evaluation.shares import share_of, share_sem, wilson


def bits(hits: int, n: int) -> np.ndarray:
    return np.arange(n) < hits


def test_no_cases_have_no_share() -> None:
    assert share_of(bits(0, 0)) is None


@pytest.mark.parametrize(("hits", "n"), [(0, 32), (32, 32), (1, 1), (7, 90)])
def test_the_interval_is_wilsons_and_never_empty(hits: int, n: int) -> None:
    share = share_of(bits(hits, n))
    assert share is not None
    assert (share.low, share.high) == wilson(hits / n, n)
    assert share.sem > 0


def test_the_share_is_hits_over_cases() -> None:
    share = share_of(bits(7, 90))
    assert share is not None
    assert share.share == 7 / 90


def test_questions_about_one_passage_count_as_little_more_than_one() -> None:
    """Ten questions of each passage that agree with each other say as much as one question."""
    agrees = np.repeat(bits(30, 100), 10)
    passages = [f"passage {n // 10}" for n in range(1000)]
    alone, together = share_of(agrees), share_of(agrees, passages)
    assert alone is not None
    assert together is not None
    assert together.share == alone.share
    assert together.sem / alone.sem == pytest.approx(np.sqrt(10), rel=0.02)


def test_independent_cases_in_passages_keep_their_error() -> None:
    agrees = np.random.default_rng(0).random(4000) < 0.3
    alone, together = share_of(agrees), share_of(agrees, [f"{n // 4}" for n in range(4000)])
    assert alone is not None
    assert together is not None
    assert together.sem == pytest.approx(alone.sem, rel=0.06)


def test_where_no_case_agrees_the_passages_are_counted() -> None:
    share = share_of(bits(0, 1000), [f"{n // 10}" for n in range(1000)])
    assert share is not None
    assert share.high == wilson(0, 100)[1]


def test_cases_without_a_passage_stand_alone() -> None:
    agrees = bits(300, 1000)
    mixed = share_of(agrees, ["a", "a", *([""] * 998)])
    alone = share_of(agrees)
    assert mixed is not None
    assert alone is not None
    assert mixed.sem == pytest.approx(alone.sem, rel=0.01)


def test_errors_are_binomial_and_never_zero() -> None:
    assert share_sem(0.25, 4) == pytest.approx(math.sqrt(3 / 64))
    # Half of Wilson's interval for z = 1.
    assert share_sem(0, 20) == share_sem(1, 20) == pytest.approx(1 / 42)
