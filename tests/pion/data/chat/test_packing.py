from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.chat.conversation import Tokenized
from pion.data.chat.packing import Sided, best_fit_decreasing, pack, pack_items, row_that_holds
from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS, require_pairs

PAD, SEQ_LEN = 1, 24


def sequence(number, learned):
    """Return a sequence whose ids are different from every other sequence's."""
    ids = 1000 * (number + 1) + np.arange(len(learned), dtype=np.int32)
    return Tokenized(ids, np.array(learned, dtype=bool))


def sided(number, prompt, answer, preferred):
    return Sided(sequence(number, np.arange(prompt + answer) >= prompt), preferred)


def pair(number, prompt, chosen, rejected):
    return (sided(2 * number, prompt, chosen, True), sided(2 * number + 1, prompt, rejected, False))


SMALL = st.integers(1, 8)
PAIRS = st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=40).map(
    lambda sizes: [
        pair(n, *size) for n, size in enumerate(sizes) if 2 * size[0] + size[1] + size[2] <= SEQ_LEN
    ]
)
LABELS = st.lists(st.tuples(SMALL, SMALL, st.booleans()), max_size=40).map(
    lambda sizes: [(sided(n, *size),) for n, size in enumerate(sizes)]
)
CONVERSATIONS = st.lists(st.lists(st.booleans(), max_size=40), max_size=30).map(
    lambda masks: [sequence(n, mask) for n, mask in enumerate(masks)]
)


def unpacked(ids, flags):
    """Return each row's sequences with their masks and sides, separated only by the flags."""
    rows = []
    for row, marks in zip(ids, flags):
        end = len(row) - int(((marks & PADDING) != 0).sum())
        assert (row[end:] == PAD).all()  # padding is the tail, and has no other flag
        assert (marks[end:] == PADDING).all()
        starts = [*np.flatnonzero(marks & STARTS).tolist(), end]
        assert starts[0] == 0
        assert not (marks & PREFERRED)[(marks & STARTS) == 0].any()
        parts = [(row[a:b].tolist(), marks[a:b]) for a, b in pairwise(starts)]
        rows.append([(r, ((m & LEARNED) != 0).tolist(), bool(m[0] & PREFERRED)) for r, m in parts])
    return rows


def as_lists(item):
    return [(s.sequence.ids.tolist(), s.sequence.learned.tolist(), s.preferred) for s in item]


@settings(max_examples=100, deadline=None)
@given(CONVERSATIONS)
def test_every_conversation_is_in_one_row_whole_or_cut_with_its_mask(conversations):
    packed = pack(conversations, SEQ_LEN, PAD)
    kept = [c for c in conversations if c.learned[1:SEQ_LEN].any()]
    expected = [(c.ids[:SEQ_LEN].tolist(), c.learned[:SEQ_LEN].tolist(), False) for c in kept]
    assert sorted(chain(*unpacked(packed.ids, packed.flags))) == sorted(expected)
    assert packed.conversations == len(expected)
    assert packed.dropped == len(conversations) - len(expected)
    assert packed.cut == sum(len(c.ids) > SEQ_LEN for c in kept)
    again = pack(list(conversations), SEQ_LEN, PAD)
    assert np.array_equal(packed.ids, again.ids)
    assert np.array_equal(packed.flags, again.flags)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_every_pair_is_whole_in_one_row_chosen_first_and_none_is_lost_or_doubled(pairs):
    ids, flags = pack_items(pairs, SEQ_LEN, PAD)
    found = []
    for number, sequences in enumerate(unpacked(ids, flags)):
        require_pairs(flags[number], "a row")
        found += [sequences[k : k + 2] for k in range(0, len(sequences), 2)]
    assert sorted(found) == sorted(map(as_lists, pairs))
    assert all(map(np.array_equal, pack_items(list(pairs), SEQ_LEN, PAD), (ids, flags)))


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_every_labelled_sequence_is_one_document_with_its_label(labelled):
    found = chain(*unpacked(*pack_items(labelled, SEQ_LEN, PAD)))
    assert sorted(found) == sorted(chain(*map(as_lists, labelled)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_items_fill_bins_without_overflow_and_close_to_the_least_possible(lengths):
    bins = best_fit_decreasing(lengths, 50)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 50 for members in bins)
    # Best-fit decreasing never needs more than 11/9 of the optimum and one bin.
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // 50) + 1 or max(lengths) * 2 > 50


def test_an_item_goes_to_the_fullest_bin_that_has_room():
    assert best_fit_decreasing([6, 8, 3, 2], 10) == [[1, 3], [0, 2]]


def test_real_lengths_leave_little_padding():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 20_000).astype(int).clip(1, 2048)
    rows = len(best_fit_decreasing(lengths.tolist(), 2048))
    assert lengths.sum() / (rows * 2048) > 0.99


def test_a_conversation_whose_answer_lies_beyond_the_row_is_dropped_and_counted():
    late = sequence(0, [False] * SEQ_LEN + [True] * 4)
    on_time = sequence(1, [False] * (SEQ_LEN - 1) + [True] * 4)
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
def test_a_row_holds_a_share_of_the_lengths(share, lengths, row):
    assert row_that_holds(share, np.array(lengths)) == row


def test_nothing_but_dropped_conversations_makes_no_row():
    packed = pack([sequence(0, [False] * 4)], SEQ_LEN, PAD)
    assert packed.ids.shape == packed.flags.shape == (0, SEQ_LEN)


def test_a_pair_goes_where_both_of_its_sequences_fit():
    pairs = [pair(0, 2, 6, 6), pair(1, 2, 4, 8), pair(2, 2, 2, 2)]
    _, flags = pack_items(pairs, SEQ_LEN, PAD)
    assert ((flags & STARTS) != 0).sum(axis=1).tolist() == [2, 4]


def test_a_pair_that_fills_a_row_to_the_last_token_fits():
    _, flags = pack_items([pair(0, 6, 6, 6)], SEQ_LEN, PAD)
    assert flags.shape == (1, SEQ_LEN)
    assert not (flags & PADDING).any()


def test_a_pair_longer_than_a_row_is_never_cut():
    with pytest.raises(ValueError, match="an item of 25 tokens is longer than a row of 24"):
        pack_items([pair(0, 6, 6, 7)], SEQ_LEN, PAD)
