"""What `pion check` can say of preferences, and when it says no."""

from dataclasses import asdict

import numpy as np
import pytest

from pion.data.chat.conversation import Tokenized
from pion.data.chat.packing import Sided, pack_items
from pion.data.preference.layouts import parse_preference
from pion.data.preference.rendering import (
    EMPTY,
    LONGER_THAN_CONTEXT,
    LONGER_THAN_ROW,
    TIE,
    Dropped,
    Refused,
    Usable,
)
from pion.data.preference.summary import Tally, Targets, summarize, tally_of, total
from pion.errors import BadInput
from pipeline.state.record_json import Damaged, build, closed_record

SEQ_LEN, PROMPT = 64, 4


def sequence(targets):
    return Tokenized(np.zeros(PROMPT + targets, np.int32), np.arange(PROMPT + targets) >= PROMPT)


def flags(pairs):
    """Return the flags of rows with pairs of so many chosen and rejected targets."""
    items = [(Sided(sequence(w), True), Sided(sequence(r), False)) for w, r in pairs]
    packed = pack_items(items, SEQ_LEN, 0)[1]
    return [packed[:1], packed[1:]]  # as from two shards


def of_pairs(train, held_out=None, **counts):
    every = {"train": flags(train), "held_out": flags(held_out or [])}
    read = len(train) + len(held_out or []) + sum(counts.get("dropped", {}).values())
    return summarize("pairs", every, SEQ_LEN, Tally(**{"read": read, **counts}))


def refusal(summary):
    with pytest.raises(BadInput) as error:
        summary.check("prefer.sources.0")
    assert str(error.value).startswith("prefer.sources.0: ")
    assert "Nothing was trained." in str(error.value)
    return str(error.value)


def test_pairs_rows_and_targets_of_both_sides_are_counted():
    summary = of_pairs([(10, 2), (20, 4), (30, 9)], [(5, 6)])
    train = summary.train
    assert (train.items, train.rows, train.tokens) == (3, 2, 24 + 75)
    assert train.preferred == Targets(20, 20)
    assert train.other == Targets(5, 4)
    assert train.chosen_longer == 1
    assert (summary.held_out.items, summary.held_out.rows) == (1, 1)
    assert summary.in_words() == [
        "3 pairs in 2 rows of 64 tokens; 1 more are held out, in 1 rows",
        "target tokens: chosen 20 on average, median 20; rejected 5 on average, median 4",
        "the chosen answer is longer in 100% of the pairs",
        'held-out pairs by rule: "the longer wins" is right for 0%, "the shorter wins" for 100%: '
        "a model must do better",
    ]


def test_answers_of_one_length_count_half_for_both_rules():
    held_out = of_pairs([(1, 2)], [(3, 3), (3, 3), (4, 2), (5, 1)]).held_out
    assert (held_out.chosen_longer, held_out.longer_wins) == (0.5, 0.75)


def test_labels_have_desired_and_undesired_answers_and_no_rule():
    items = [(Sided(sequence(n), good),) for n, good in ((3, True), (5, True), (9, False))]
    rows = {"train": [pack_items(items, SEQ_LEN, 0)[1]], "held_out": []}
    summary = summarize("labels", rows, SEQ_LEN, Tally(read=3))
    assert (summary.train.items, summary.train.rows) == (3, 1)
    assert (summary.train.preferred, summary.train.other) == (Targets(4, 4), Targets(9, 9))
    assert summary.train.chosen_longer is summary.held_out.longer_wins is None
    assert "desired 4 on average" in summary.in_words()[1]
    assert summary.warnings() == []
    summary.check("here")


def test_labels_of_one_kind_are_warned_about():
    rows = {"train": [pack_items([(Sided(sequence(3), True),)], SEQ_LEN, 0)[1]]}
    summary = summarize("labels", {**rows, "held_out": []}, SEQ_LEN, Tally(read=1))
    assert summary.warnings() == ["no label is false: there is nothing to compare with"]


def test_what_is_left_out_is_said_by_reason_with_mean_lengths():
    summary = of_pairs(
        [(1, 2)] * 200,
        dropped={EMPTY: 1, TIE: 2},
        dropped_encoded={TIE: 2},
        dropped_tokens={TIE: 30},
        early=3,
    )
    *_, early, left_out = summary.in_words()
    assert early.startswith("3 pairs differ from an earlier answer on")
    assert left_out == (
        "left out: 1, because an answer is empty; 2, because chosen and rejected are equally good "
        "(on average 15 tokens)"
    )
    assert summary.warnings() == []
    summary.check("here")


def too_long(lengths):
    count = sum(lengths.values())
    tokens = sum(int(length) * n for length, n in lengths.items())
    return {
        "dropped": {LONGER_THAN_ROW: count},
        "dropped_encoded": {LONGER_THAN_ROW: count},
        "dropped_tokens": {LONGER_THAN_ROW: tokens},
        "too_long": lengths,
    }


def test_above_5_in_100_left_out_there_is_a_warning_with_the_row_that_keeps_99():
    summary = of_pairs([(1, 2)] * 93, **too_long({"128": 4, "256": 2, "8192": 1}))
    (warning,) = summary.warnings()
    assert warning == (
        "7.0% of the pairs are left out: 7, because they are longer than a row (on average 1,317 "
        "tokens). prefer.seq_len=256 keeps 99% of those that fit the context"
    )
    summary.check("here")
    assert of_pairs([(1, 2)] * 95, **too_long({"128": 5})).warnings() == []


def test_no_longer_row_is_advised_where_it_would_not_help():
    summary = of_pairs([(1, 2)] * 90, dropped={LONGER_THAN_CONTEXT: 10})
    (warning,) = summary.warnings()
    assert "10, because a sequence is longer than the model's context" in warning
    assert "No prefer.seq_len keeps these: use a model with a longer context" in warning
    assert summary.keeps_most == SEQ_LEN


def test_above_half_left_out_the_data_are_refused():
    of_pairs([(1, 2)] * 10, dropped={TIE: 10}).check("here")
    why = refusal(of_pairs([(1, 2)] * 10, **too_long({"128": 11})))
    assert "11 of 21 pairs are left out, more than 50%: 11, because they are longer" in why
    assert why.endswith("prefer.seq_len=128 keeps 99% of those that fit the context")


def test_nothing_to_train_on_is_refused():
    why = refusal(of_pairs([], [(1, 2)]))
    assert "none of 1 pairs is left to train on: 1 are held out, 0 left out." in why
    assert why.endswith("Give more pairs, or lower prefer.held_out")
    nothing = of_pairs([])
    assert (nothing.train.items, nothing.train.preferred) == (0, None)
    assert "none of 0 pairs is left" in refusal(nothing)
    assert "3 of 3 pairs are left out" in refusal(of_pairs([], dropped={TIE: 3}))


def test_above_1_in_100_with_the_lower_score_the_sides_seem_swapped():
    few = {"scored": 100, "swapped": 1, "first_swapped": "f:9"}
    of_pairs([(1, 2)] * 100, **few).check("here")
    why = refusal(of_pairs([(1, 2)] * 100, **few | {"swapped": 2}))
    assert "in 2 of 100 pairs with scores" in why
    assert "(the first: f:9): chosen and rejected seem to be swapped" in why


@pytest.mark.parametrize(("longer", "warned"), [(65, False), (66, True)])
def test_above_65_in_100_longer_chosen_answers_there_is_a_warning(longer, warned):
    summary = of_pairs([(5, 2)] * longer + [(2, 5)] * (100 - longer))
    assert len(summary.warnings()) == warned
    if warned:
        assert "66% of the pairs: the model will learn to write longer" in summary.warnings()[0]
        assert "dpo-norm" in summary.warnings()[0]


def test_of_a_few_pairs_the_longer_side_says_nothing():
    assert of_pairs([(5, 2)] * 19).warnings() == []
    assert len(of_pairs([(5, 2)] * 20).warnings()) == 1


# ---------------------------------------------------------------- counts


def pair(where="f:1", **more):
    return parse_preference({"prompt": "a", "chosen": "b", "rejected": "c", **more}, where)


def usable(tokens, early=False):
    side = Tokenized(np.zeros(tokens, np.int32), np.ones(tokens, np.bool_))
    item = (Sided(side, True), Sided(side, False))
    return Usable(item, np.zeros(1, np.int32), early, {"systems": 2, "lost_systems": 1})


OUTCOMES = [
    usable(5),
    usable(7, early=True),
    Refused("f:3: why"),
    Dropped(EMPTY, None),
    Dropped(TIE, 30),
    Dropped(TIE, 10),
    Dropped(LONGER_THAN_ROW, 64),
    Dropped(LONGER_THAN_ROW, 65),
]
COUNTED = Tally(
    read=8,
    refused=1,
    early=1,
    tokens=24,
    seen={"systems": 4, "lost_systems": 2},
    dropped={EMPTY: 1, TIE: 2, LONGER_THAN_ROW: 2},
    dropped_encoded={TIE: 2, LONGER_THAN_ROW: 2},
    dropped_tokens={TIE: 40, LONGER_THAN_ROW: 129},
    too_long={"64": 1, "128": 1},
)


def test_every_outcome_is_counted_by_reason_with_its_length():
    assert tally_of([pair()] * len(OUTCOMES), OUTCOMES) == COUNTED


def test_pairs_whose_chosen_answer_has_the_lower_score_are_counted_and_the_first_is_named():
    pairs = [
        pair("f:1"),
        pair("f:2", score_chosen=2, score_rejected=1),
        pair("f:3", score_chosen=1, score_rejected=2),
        pair("f:4", score_chosen=1, score_rejected=3),
        pair("f:5", score_chosen=2, score_rejected=2),
    ]
    found = tally_of(pairs, [usable(3)] * 4 + [Dropped(TIE, 6)])
    assert (found.scored, found.swapped, found.first_swapped) == (4, 2, "f:3")


def test_counts_of_parts_add_up_to_those_of_all():
    pairs = [pair()] * len(OUTCOMES)
    parts = [tally_of(pairs[a:b], OUTCOMES[a:b]) for a, b in ((0, 3), (3, 3), (3, 8))]
    assert total(parts) == COUNTED
    assert total([]) == Tally(0)


@pytest.mark.parametrize(
    "change", [{"read": -1}, {"read": True}, {"dropped": {"unknown": 1}}, {"too_long": [1]}]
)
def test_counts_that_nobody_wrote_are_refused(change):
    assert build(closed_record(Tally), asdict(COUNTED), "counts") == COUNTED
    with pytest.raises(Damaged):
        build(closed_record(Tally), asdict(COUNTED) | change, "counts")
