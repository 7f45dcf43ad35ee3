from __future__ import annotations

import numpy as np
import pytest

from pion.data.row_flags import (
    LEARNED,
    PADDING,
    PREFERRED,
    STARTS,
    require_pairs,
    sequences_of,
    sides_of,
)
from pion.errors import BadInput

CHOSEN = [STARTS | PREFERRED, 0, LEARNED, LEARNED]
REJECTED = [STARTS, 0, LEARNED]
# Two pairs, one pair and padding, no sequence at all.
ROWS = np.array(
    [
        [*CHOSEN, *REJECTED, *CHOSEN, *REJECTED],
        [*CHOSEN, *REJECTED, *[PADDING] * 7],
        [PADDING] * 14,
    ],
    dtype=np.uint8,
)


def test_sides_are_per_row_and_0_where_a_row_has_fewer_sequences() -> None:
    sides = sides_of(ROWS)
    assert sides.dtype == np.int8
    assert sides.tolist() == [[1, -1, 1, -1], [1, -1, 0, 0], [0, 0, 0, 0]]


def test_sequences_have_their_row_tokens_targets_and_side() -> None:
    found = sequences_of(ROWS)
    assert found.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert found.tokens.tolist() == [4, 3, 4, 3, 4, 3]  # without the padding after the last one
    assert found.targets.tolist() == [2, 1, 2, 1, 2, 1]
    assert found.preferred.tolist() == [True, False] * 3


def test_the_first_token_of_a_sequence_is_never_a_target() -> None:
    flags = np.array([[STARTS | LEARNED, LEARNED]], dtype=np.uint8)
    assert sequences_of(flags).targets.tolist() == [1]


def test_rows_without_sequences_have_none() -> None:
    empty = np.zeros((0, 8), dtype=np.uint8)
    assert sides_of(empty).shape == (0, 0)
    assert len(sequences_of(empty).tokens) == len(sequences_of(ROWS[2:]).tokens) == 0


@pytest.mark.parametrize(
    "sequences",
    [CHOSEN, [*REJECTED, *CHOSEN], [*CHOSEN, *CHOSEN], [*CHOSEN, *REJECTED, *CHOSEN]],
    ids=["one", "rejected first", "both chosen", "three"],
)
def test_sequences_that_are_not_pairs_are_refused(sequences: list[int]) -> None:
    with pytest.raises(BadInput, match="some row: its sequences are not pairs"):
        require_pairs(np.array(sequences, dtype=np.uint8), "some row")


def test_pairs_are_pairs() -> None:
    for row in ROWS:
        require_pairs(row, "some row")
