from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.chat.conversation import Tokenized
from pion.data.chat.packing import Packed, best_fit_decreasing, pack, row_that_holds
from pion.data.row_flags import LEARNED, PADDING, STARTS

PAD = 1
SEQ_LEN = 16


def conversation(number: int, learned: list[bool]) -> Tokenized:
    """Return a conversation whose ids are different from every other conversation's."""
    ids = 1000 * (number + 1) + np.arange(len(learned), dtype=np.int32)
    return Tokenized(ids, np.array(learned, dtype=bool))


CONVERSATIONS = st.lists(st.lists(st.booleans(), max_size=40), max_size=30).map(
    lambda masks: [conversation(n, mask) for n, mask in enumerate(masks)]
)


def unpacked(packed: Packed) -> list[tuple[list[int], list[bool]]]:
    """Return the conversations in the rows, separated only by the flags."""
    found = []
    for ids, flags in zip(packed.ids, packed.flags):
        end = len(ids) - int(((flags & PADDING) != 0).sum())
        assert ((flags[:end] & PADDING) == 0).all()  # padding is the tail
        assert (ids[end:] == PAD).all()
        assert (flags[end:] == PADDING).all()
        starts = [*np.flatnonzero(flags & STARTS).tolist(), end]
        assert starts[0] == 0
        for a, b in pairwise(starts):
            found.append((ids[a:b].tolist(), ((flags[a:b] & LEARNED) != 0).tolist()))
    return found


@settings(max_examples=200, deadline=None)
@given(CONVERSATIONS)
def test_every_conversation_is_in_one_row_whole_or_cut_with_its_mask(
    conversations: list[Tokenized],
) -> None:
    packed = pack(conversations, SEQ_LEN, PAD)
    expected = [
        (c.ids[:SEQ_LEN].tolist(), c.learned[:SEQ_LEN].tolist())
        for c in conversations
        if c.learned[1:SEQ_LEN].any()
    ]
    assert sorted(unpacked(packed)) == sorted(expected)
    assert packed.conversations == len(expected)
    assert packed.dropped == len(conversations) - len(expected)
    kept = [c for c in conversations if c.learned[1:SEQ_LEN].any()]
    assert packed.cut == sum(len(c.ids) > SEQ_LEN for c in kept)


@settings(max_examples=50, deadline=None)
@given(CONVERSATIONS)
def test_packing_is_repeatable(conversations: list[Tokenized]) -> None:
    one, other = (pack(list(conversations), SEQ_LEN, PAD) for _ in range(2))
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.flags, other.flags)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_items_fill_bins_without_overflow_and_close_to_the_least_possible(
    lengths: list[int],
) -> None:
    bins = best_fit_decreasing(lengths, 50)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 50 for members in bins)
    # Best-fit decreasing never needs more than 11/9 of the optimum and one bin.
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // 50) + 1 or max(lengths) * 2 > 50


def test_an_item_goes_to_the_fullest_bin_that_has_room() -> None:
    assert best_fit_decreasing([6, 8, 3, 2], 10) == [[1, 3], [0, 2]]


def test_real_lengths_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 20_000).astype(int).clip(1, 2048)
    rows = len(best_fit_decreasing(lengths.tolist(), 2048))
    assert lengths.sum() / (rows * 2048) > 0.99


def test_a_conversation_whose_answer_lies_beyond_the_row_is_dropped_and_counted() -> None:
    late = conversation(0, [False] * SEQ_LEN + [True] * 4)
    on_time = conversation(1, [False] * (SEQ_LEN - 1) + [True] * 4)
    packed = pack([late, on_time], SEQ_LEN, PAD)
    assert (packed.conversations, packed.cut, packed.dropped) == (1, 1, 1)
    assert packed.ids.tolist() == [on_time.ids[:SEQ_LEN].tolist()]


@pytest.mark.parametrize(
    ("share", "lengths", "row"),
    [
        (0.95, [], 0),
        (0.95, [64] * 19 + [999], 64),
        (0.95, [64] * 18 + [65, 999], 128),
        (1, [1], 64),
    ],
)
def test_a_row_holds_a_share_of_the_lengths(share: float, lengths: list[int], row: int) -> None:
    assert row_that_holds(share, np.array(lengths)) == row


def test_nothing_but_dropped_conversations_makes_no_row() -> None:
    packed = pack([conversation(0, [False] * 4)], SEQ_LEN, PAD)
    assert packed.ids.shape == packed.flags.shape == (0, SEQ_LEN)
