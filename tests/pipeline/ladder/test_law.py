"""The law of losses: what it says, and that a fit finds it again."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ladder.law import Law, Measured, best_of_starts, predicted
from tests.pipeline.ladder.made_up import LAWS, ladder


def measured(law: Law) -> Measured:
    points = ladder(law)
    columns = zip(*((p.macs_per_token, p.tokens, p.bits_per_byte) for p in points))
    return Measured.of(*(np.array(column, dtype=np.float64) for column in columns))


def test_a_loss_is_the_sum_of_its_terms() -> None:
    law = Law(E=1.0, A=8.0, alpha=0.5, B=27.0, beta=1 / 3)
    assert law.loss(16, 27) == pytest.approx(1 + 2 + 9)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_without_noise_is_found_again(law: Law) -> None:
    at = measured(law)
    found = best_of_starts(at)
    assert predicted(found, at) == pytest.approx(at.losses, abs=2e-5)
    again = at.law(found)
    for macs, tokens in ((1e7, 2e7), (5e7, 1e8)):
        assert again.loss(macs, tokens) == pytest.approx(law.loss(macs, tokens), rel=2e-3)


def test_one_run_that_failed_hardly_moves_the_law() -> None:
    at = measured(LAWS[1])
    at.losses[5] += 0.3
    again = at.law(best_of_starts(at))
    assert again.loss(1e7, 2e7) == pytest.approx(LAWS[1].loss(1e7, 2e7), rel=5e-3)
