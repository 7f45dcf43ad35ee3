"""Which questions a limit draws."""

from __future__ import annotations

import pytest

from pipeline.stages.lm_eval_results import drawn


def test_the_drawn_questions_never_change() -> None:
    # Finished runs were asked these. Another Python must not draw others.
    assert drawn(1319, 8) == [120, 203, 447, 640, 651, 704, 1097, 1209]


def test_a_smaller_sample_is_part_of_a_larger_one_and_in_order() -> None:
    small, large = drawn(1000, 50), drawn(1000, 200)
    assert small is not None
    assert large is not None
    assert set(small) < set(large)
    assert small == sorted(small)
    assert len(set(large)) == 200


def test_the_sample_is_not_the_beginning() -> None:
    found = drawn(1000, 500)
    assert found is not None
    assert abs(sum(place < 500 for place in found) - 250) < 50


@pytest.mark.parametrize("limit", [None, 40, 41, 10**9])
def test_all_are_asked_without_a_limit_or_with_a_large_one(limit: int | None) -> None:
    assert drawn(40, limit) is None
