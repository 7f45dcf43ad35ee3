from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.chat.conversation import Tokenized
from pion.data.preference.rendering import Sided, pack_preferences
from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS, require_pairs

PAD, SEQ_LEN = 1, 24

Item = tuple[Sided, ...]


def sequence(number: int, prompt: int, answer: int) -> Tokenized:
    """Return a sequence whose ids are different from every other sequence's."""
    ids = 1000 * (number + 1) + np.arange(prompt + answer, dtype=np.int32)
    return Tokenized(ids, np.arange(prompt + answer) >= prompt)


def pair(number: int, prompt: int, chosen: int, rejected: int) -> Item:
    return (
        Sided(sequence(2 * number, prompt, chosen), True),
        Sided(sequence(2 * number + 1, prompt, rejected), False),
    )


SMALL = st.integers(1, 8)
PAIRS = st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=40).map(
    lambda sizes: [
        pair(n, *size) for n, size in enumerate(sizes) if 2 * size[0] + size[1] + size[2] <= SEQ_LEN
    ]
)
LABELS = st.lists(st.tuples(SMALL, SMALL, st.booleans()), max_size=40).map(
    lambda sizes: [(Sided(sequence(n, p, a), good),) for n, (p, a, good) in enumerate(sizes)]
)


def unpacked(ids: np.ndarray, flags: np.ndarray) -> list[list[tuple[list[int], list[bool], bool]]]:
    """Return each row's sequences with their masks and sides, separated only by the flags."""
    rows = []
    for row, marks in zip(ids, flags):
        end = len(row) - int(((marks & PADDING) != 0).sum())
        assert (row[end:] == PAD).all()  # padding is the tail, and has no other flag
        assert (marks[end:] == PADDING).all()
        starts = [*np.flatnonzero(marks & STARTS).tolist(), end]
        assert starts[0] == 0
        assert not (marks & PREFERRED)[(marks & STARTS) == 0].any()
        rows.append(
            [
                (
                    row[a:b].tolist(),
                    ((marks[a:b] & LEARNED) != 0).tolist(),
                    bool(marks[a] & PREFERRED),
                )
                for a, b in pairwise(starts)
            ]
        )
    return rows


def as_lists(item: Item) -> list[tuple[list[int], list[bool], bool]]:
    return [(s.sequence.ids.tolist(), s.sequence.learned.tolist(), s.preferred) for s in item]


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_every_pair_is_whole_in_one_row_chosen_first_and_none_is_lost_or_doubled(
    pairs: list[Item],
) -> None:
    ids, flags = pack_preferences(pairs, SEQ_LEN, PAD)
    found = []
    for number, sequences in enumerate(unpacked(ids, flags)):
        require_pairs(flags[number], "a row")
        found += [sequences[k : k + 2] for k in range(0, len(sequences), 2)]
    assert sorted(found) == sorted(map(as_lists, pairs))


@settings(max_examples=200, deadline=None)
@given(LABELS)
def test_every_labelled_sequence_is_one_document_with_its_label(labelled: list[Item]) -> None:
    ids, flags = pack_preferences(labelled, SEQ_LEN, PAD)
    found = [one for sequences in unpacked(ids, flags) for one in sequences]
    assert sorted(found) == sorted(one for item in labelled for one in as_lists(item))


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_packing_is_repeatable(pairs: list[Item]) -> None:
    one, other = (pack_preferences(list(pairs), SEQ_LEN, PAD) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other))


def test_a_pair_goes_where_both_of_its_sequences_fit() -> None:
    pairs = [pair(0, 2, 6, 6), pair(1, 2, 4, 8), pair(2, 2, 2, 2)]
    _, flags = pack_preferences(pairs, SEQ_LEN, PAD)
    assert ((flags & STARTS) != 0).sum(axis=1).tolist() == [2, 4]


def test_a_pair_that_fills_a_row_to_the_last_token_fits() -> None:
    _, flags = pack_preferences([pair(0, 6, 6, 6)], SEQ_LEN, PAD)
    assert flags.shape == (1, SEQ_LEN)
    assert not (flags & PADDING).any()


def test_a_pair_longer_than_a_row_is_never_cut() -> None:
    with pytest.raises(ValueError, match="an item of 25 tokens is longer than a row of 24"):
        pack_preferences([pair(0, 6, 6, 7)], SEQ_LEN, PAD)


def test_nothing_makes_no_row() -> None:
    ids, flags = pack_preferences([], SEQ_LEN, PAD)
    assert ids.shape == flags.shape == (0, SEQ_LEN)
