"""What is found, and what is not: planted items, quotes, boilerplate, and a plain second search."""

from random import Random

import numpy as np
import pytest

from pion.data.overlap.found import nothing_found, read_found
from pion.data.overlap.index import build_index
from pion.data.overlap.items import Item, ItemSet, counted_words
from pion.data.overlap.search import pieces, search
from pion.data.overlap.words import MOST_BYTES, split_words
from tests.support.overlap_texts import (
    DECLARATION,
    GETTYSBURG,
    LICENCE,
    Prose,
    found_items,
    searched,
    text_of,
)

PLANTED, OTHERS = 200, 300


def fragments(text, words, step):
    split = text.split()
    return [" ".join(split[n : n + words]) for n in range(0, len(split) - words + 1, step)]


@pytest.fixture(scope="module")
def prose():
    return Prose(seed=1)


def test_planted_items_are_found_and_no_other(prose):
    items = [prose.item() for _ in range(PLANTED + OTHERS)]
    rows = [prose.row(text_of(item)) for item in items[:PLANTED]]
    found = found_items(items, [*rows, *(prose.row() for _ in range(1000))])
    assert sum(found[:PLANTED]) >= 0.99 * PLANTED
    assert not any(found[PLANTED:])


def test_planted_items_are_found_in_other_case_punctuation_and_line_breaks(prose):
    items = [prose.item() for _ in range(PLANTED)]
    rows = [prose.row(prose.disguised(text_of(item))) for item in items]
    assert all(text_of(item) not in row for item, row in zip(items, rows))
    assert sum(found_items(items, rows)) >= 0.95 * PLANTED


def test_a_quote_whose_parts_are_in_different_rows_is_not_found(prose):
    quotes = [*fragments(GETTYSBURG, 26, 11), *fragments(DECLARATION, 26, 9)][:40]
    items = [Item(f"Who wrote this? {quote}", "An American president") for quote in quotes]
    assert len(items) == 40
    pieces_of = [*fragments(GETTYSBURG, 19, 1), *fragments(DECLARATION, 19, 1)]
    rows = [prose.row(piece) for piece in pieces_of]
    assert found_items(items, rows).count(True) == 0
    # The rows together hold enough of every quote.
    assert all(found_items(items, [" ".join(rows)]))


def with_licence(prose, number):
    return Item(f"{LICENCE}\ndef {prose.text(4)}{number}(self): return what?", prose.text(3))


def test_a_licence_header_before_each_item_is_not_found(prose):
    items = [with_licence(prose, number) for number in range(40)]
    rows = [prose.row(LICENCE) for _ in range(200)]
    assert found_items(items, rows).count(True) == 0
    # Below ten items, nothing tells the header from a question: the rule has this limit.
    assert all(found_items(items[:9], rows))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.2, [True] * 4), (0.5, [False, True, True, True]), (0.8, [False, False, True, True])],
)
def test_the_threshold_changes_the_result(threshold, expected, monkeypatch):
    monkeypatch.setattr("pion.data.overlap.found.THRESHOLD", threshold)
    items = [Item(" ".join(f"i{k}w{n}" for n in range(40)), "") for k in range(4)]
    held = (10, 15, 23, 28)  # n-grams of 28
    rows = [" ".join(item.question.split()[: n + 12]) for item, n in zip(items, held)]
    assert found_items(items, rows) == expected


def test_exactly_the_threshold_is_enough(monkeypatch):
    words = [f"w{n}" for n in range(22)]  # 10 n-grams; 0.7 · 10 is 7.000000000000001
    item = Item(" ".join(words), "")
    with monkeypatch.context() as patch:
        patch.setattr("pion.data.overlap.found.THRESHOLD", 0.7)
        assert found_items([item], [" ".join(words[:19])]) == [True]
        assert found_items([item], [" ".join(words[:18])]) == [False]
    odd = Item(" ".join(words[:21]), "")  # half of 9 n-grams is more than 4
    assert found_items([odd], [" ".join(words[:17])]) == [True]
    assert found_items([odd], [" ".join(words[:16])]) == [False]


def test_a_row_with_the_answer_is_told_from_one_without():
    question = " ".join(f"q{n}" for n in range(36))
    items = [Item(question, "the right answer"), Item(question.replace("q", "p"), "yes")]
    rows = [f"{question} the wrong answer", f"{items[1].question} yes"]
    index, found = searched([ItemSet("set", items)], rows)
    assert found.overlapped(index).tolist() == [True, True]
    # The n-gram that ends in "the" reaches into the answer.
    assert found.with_answer.tolist() == [True, True]
    index, found = searched([ItemSet("set", items)], [f"{question} a wrong answer"])
    assert found.overlapped(index).tolist() == [True, False]
    assert found.with_answer.tolist() == [False, False]


def test_an_answer_in_a_row_below_the_threshold_says_nothing():
    words = [f"w{n}" for n in range(40)]
    item = Item(" ".join(words[:39]), words[39])
    rows = [" ".join(words[:30]), " ".join(words[25:])]  # 18 without, 3 with the answer
    index, found = searched([ItemSet("set", [item])], rows)
    assert found.overlapped(index).tolist() == [True]
    assert found.with_answer.tolist() == [False]


def plainly_held(items, rows):
    """Return how many n-grams of each item each row holds, by sets of words."""
    wanted = []
    for item in items:
        words, _ = counted_words(item)
        length = min(len(words), 13)
        runs = {tuple(words[n : n + length]) for n in range(len(words) - length + 1)}
        wanted.append(runs if length >= 8 else set())
    owners = {}
    for runs in wanted:
        for run in runs:
            owners[run] = owners.get(run, 0) + 1
    wanted = [{run for run in runs if owners[run] < 10} for runs in wanted]
    table = []
    for row in rows:
        words = split_words(row.encode())
        own = {tuple(words[n : n + k]) for k in range(8, 14) for n in range(len(words) - k + 1)}
        table.append([len(runs & own) for runs in wanted])
    return table


@pytest.mark.parametrize("seed", range(6))
def test_a_plain_search_finds_the_same(seed):
    """Rows and items are cut from one text of few words, so that n-grams repeat and are shared."""
    chance = Random(seed)
    source = chance.choices(["ab", "Ab", "c", "dé", "e’f", "g,"], k=300)

    def cut(least, most):
        first = chance.randrange(280)
        return " ".join(source[first : first + chance.randint(least, most)])

    items = [Item(cut(0, 40), cut(0, 5)) for _ in range(60)]
    rows = [chance.choice(["", " ", "\n"]).join(cut(0, 30) for _ in range(4)) for _ in range(40)]
    _, found = searched([ItemSet("set", items)], rows)
    held = np.array(plainly_held(items, rows))
    assert found.held.tolist() == held.max(axis=0).tolist()


@pytest.mark.parametrize("shift", range(-60, 61, 20))
def test_an_item_at_the_border_of_two_reads_is_found(shift):
    """The rows before it fill a read up to the border, or nearly."""
    item = Item(" ".join(f"w{n}" for n in range(24)), "end")
    filler = "fill " * ((MOST_BYTES - 200) // 5)
    rows = [filler, "x" * (200 - len(filler) % 5 + shift), text_of(item), filler]
    assert found_items([item], rows) == [True]


# Steps of 17 cut the item at the end of a word, and at each letter of one.
@pytest.mark.parametrize("shift", range(0, 140, 17))
def test_an_item_anywhere_in_a_row_longer_than_a_read_is_found_whole(shift):
    item = Item(" ".join(f"w{n}" for n in range(24)), "end")
    filler = "fill " * (MOST_BYTES // 5)
    row = filler[: MOST_BYTES - 100 + shift] + " " + text_of(item) + " " + filler * 2
    index, found = searched([ItemSet("set", [item])], ["", row])
    assert found.held.tolist() == index.sizes.tolist() == [13]


def test_the_parts_of_a_long_text_have_all_its_runs_of_words_and_no_other():
    chance = Random(3)
    text = " ".join("x" * chance.randint(1, 40) + str(n) for n in range(30_000)).encode()
    words = split_words(text)
    parts = [split_words(part) for part in pieces(text)]
    assert len(parts) > 2
    runs = {tuple(part[n : n + 13]) for part in parts for n in range(len(part) - 12)}
    assert runs == {tuple(words[n : n + 13]) for n in range(len(words) - 12)}


def test_a_word_longer_than_a_read_does_not_stop_the_search():
    item = Item(" ".join(f"w{n}" for n in range(24)), "end")
    endless = "A" * (3 * MOST_BYTES + 17)
    assert found_items([item], [f"{endless} {text_of(item)} {endless}"]) == [True]


def test_an_ngram_does_not_span_two_rows():
    item = Item("one two three four five six seven eight", "")
    assert found_items([item], ["one two three four", "five six seven eight"]) == [False]
    assert found_items([item], ["one two three four five six seven eight"]) == [True]


def test_unicode_text_is_found():
    text = "Я помню чудное мгновенье передо мной явилась ты как мимолётное виденье"
    greek = "Άνδρα μοι έννεπε μούσα πολύτροπον ος μάλα πολλά πλάγχθη επεί Τροίης"
    items = [Item(text, "как гений"), Item(greek, "ιερόν")]
    rows = [f"… {text} — как гений «чистой красоты»", f"“{greek.replace(' ', ', ')},\nιερόν”"]
    assert found_items(items, rows) == [True, True]
    # Only ASCII has a lower case here.
    assert found_items(items, [text.upper(), greek.upper()]) == [False, False]


def test_a_row_that_begins_and_ends_inside_a_character_is_searched():
    item = Item("eins zwei drei vier fünf sechs sieben acht", "neun")
    index = build_index([ItemSet("set", [item])])
    found = nothing_found(index)
    inside = "é".encode()[1:] + b" " + text_of(item).encode() + b" \xe2\x80"
    search(index, [(7, inside), (8, b"\x9c")], found)
    assert found.overlapped(index).tolist() == [True]


@pytest.mark.parametrize("sets", [[], [ItemSet("empty", [])], [ItemSet("blank", [Item("", "")])]])
def test_without_anything_to_look_for_nothing_is_found(sets):
    index, found = searched(sets, ["some words " * 50, ""])
    assert not found.overlapped(index).any()
    assert found.rows == 2


@pytest.mark.parametrize("rows", [[], [""], ["", "", " \n"], ["one"]])
def test_rows_without_words_hold_nothing(rows, prose):
    index, found = searched([ItemSet("set", [prose.item()])], rows)
    assert not found.overlapped(index).any()
    assert found.rows == len(rows)


def test_several_sets_share_the_words_and_keep_their_own_templates(prose):
    """What is a template in one set may be a question in another."""
    shared = prose.text(20)
    many = ItemSet("many", [Item(shared, f"answer{n}") for n in range(12)])
    few = ItemSet("few", [Item(shared, "")])
    index, found = searched([many, few], [prose.row(shared)])
    assert found.overlapped(index).tolist() == [False] * 12 + [True]


def test_each_row_that_overlaps_is_told_with_its_items(prose):
    items = [prose.item(20) for _ in range(40)]
    # The last row alone is longer than what is searched at once.
    rows = [prose.row(), prose.row(text_of(items[3])), prose.row()]
    rows.append(prose.row(f"{text_of(items[7])}\n{text_of(items[5])}", words=60_000))
    index = build_index([ItemSet("set", items)])
    told = {}
    search(
        index,
        ((number, row.encode()) for number, row in enumerate(rows)),
        nothing_found(index),
        on_overlap=lambda row, found: told.update({row: found.tolist()}),
    )
    assert len(rows[3]) > MOST_BYTES
    assert told == {1: [3], 3: [5, 7]}


# ---------------------------------------------------------------- what is kept, and continued


@pytest.fixture(scope="module")
def sets():
    prose = Prose(seed=2)
    return [ItemSet("a", [prose.item() for _ in range(40)], [prose.item() for _ in range(10)])]


@pytest.fixture(scope="module")
def index(sets):
    return build_index(sets)


@pytest.fixture(scope="module")
def shards(sets):
    """Three shards with whole items and parts of items."""
    prose = Prose(seed=3)
    rows = []
    for item in sets[0].items:
        words = text_of(item).split()
        rows += [prose.row(" ".join(words[:n])) for n in (15, 25, len(words))]
    texts = [(number, row.encode()) for number, row in enumerate(rows)]
    return [texts[:37], texts[37:38], texts[38:]]


def whole(index, rows):
    found = nothing_found(index)
    search(index, rows, found)
    return found


def test_continued_after_each_shard_is_the_same_as_whole(sets, shards):
    """Each shard is searched by another process would: with an index that it has built again."""
    kept = nothing_found(build_index(sets)).record()
    for shard in shards:
        again = build_index(sets)
        found = read_found(kept, again)
        search(again, shard, found)
        kept = found.record()
    assert kept == whole(build_index(sets), [row for shard in shards for row in shard]).record()


def test_the_order_of_the_rows_does_not_matter(index, shards):
    rows = [row for shard in shards for row in shard]
    shuffled = Random(0).sample(rows, len(rows))
    assert whole(index, shuffled).record() == whole(index, rows).record()


def test_rows_read_twice_change_only_the_counts(index, shards):
    once, twice = whole(index, shards[0]), whole(index, shards[0] * 2)
    assert twice.rows == 2 * once.rows
    assert twice.held.tolist() == once.held.tolist()


def test_only_items_with_hits_are_kept(index, shards):
    assert nothing_found(index).record()["items"] == []
    assert len(whole(index, shards[0]).record()["items"]) == 13


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rows": True},
        {"rows": 2**63},
        {"items": None},
        {"items": [[0, 1]]},
        {"items": [[0, 0, 0]]},
        {"items": [[0, 1_000, 0]]},
        {"items": [[50, 1, 0]]},
        {"items": [[-1, 1, 0]]},
        {"items": [[0, 1, "yes"]]},
        {"items": [[0.5, 1, 0]]},
    ],
)
def test_damaged_hits_are_refused(index, change):
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        read_found(nothing_found(index).record() | change, index)
