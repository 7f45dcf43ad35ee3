"""Which documents are copies: the first is kept, and the threshold decides how near a copy is."""

import random
from functools import cache

import numpy as np
import pytest

from pion.clean import copies
from pion.clean.copies import NONE, exact_copies, near_copies
from pion.clean.measure import measure
from tests.support.planted_copies import CHANGES, near_copy, plant
from tests.support.python_library import read_only_a_part

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("ando", "iru", "elem", "otan", "ux")]


def text_of(seed, words=60):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def originals(texts, threshold, kept=None):
    """Return, of each text, the earlier text that it is like, or NONE."""
    kept = np.ones(len(texts), dtype=bool) if kept is None else kept
    return near_copies(measure(texts).signatures, kept, threshold).tolist()


def test_of_equal_texts_the_first_is_kept_and_case_and_white_space_do_not_count():
    texts = ["one two", "three four", "ONE  two\n", "one, two", "three four"]
    kept = np.ones(5, dtype=bool)
    assert exact_copies(measure(texts).hashes, kept).tolist() == [NONE, NONE, 0, NONE, 1]
    kept[0] = False
    assert exact_copies(measure(texts).hashes, kept).tolist() == [NONE, NONE, NONE, NONE, 1]


def test_of_similar_texts_the_first_is_kept():
    draw = random.Random(0)
    texts = [text_of(n) for n in range(20)]
    texts += [near_copy(texts[n], "all four", draw, WORDS) for n in range(0, 20, 4)]
    assert originals(texts, 0.5) == [NONE] * 20 + [0, 4, 8, 12, 16]


def test_a_text_that_is_left_out_for_another_reason_makes_no_copy_of_others():
    texts = [text_of(1), text_of(1), text_of(1)]
    kept = np.array([False, True, True])
    assert originals(texts, 0.5, kept) == [NONE, NONE, 1]


def test_of_a_chain_of_similar_texts_only_the_first_is_kept():
    words = text_of(1, 100).split(" ")
    slices = [" ".join(words[first : first + 60]) for first in (0, 12, 24, 36)]
    assert originals(slices, 0.6) == [NONE, 0, 1, 2]
    assert originals([slices[0], slices[3]], 0.6) == [NONE, NONE]


def test_texts_of_few_words_are_not_compared():
    short = "return the name of the open file"
    assert originals([short, f"{short}!", "x", ""], 0.3) == [NONE] * 4


@pytest.mark.parametrize(("threshold", "found"), [(0.6, True), (0.9, False)])
def test_the_threshold_decides(threshold, found):
    copy = near_copy(text_of(1, 200), "5 % of the words replaced", random.Random(0), WORDS)
    assert (originals([text_of(1, 200), copy], threshold)[1] == 0) is found


def test_how_documents_are_divided_does_not_change_the_result(monkeypatch):
    texts = [text for text, _ in plant([text_of(n, 30) for n in range(150)], 0.5, "all four")]
    before = originals(texts, 0.6)
    assert sum(one != NONE for one in before) > 60
    for name, small in (("AT_ONCE", 7), ("BAND_BYTES", 1)):
        monkeypatch.setattr(copies, name, small)
    assert originals(texts, 0.6) == before
    one_by_one = np.concatenate([measure([text]).signatures for text in texts])
    assert near_copies(one_by_one, np.ones(len(texts), dtype=bool), 0.6).tolist() == before


def test_no_documents_are_no_copies():
    assert originals([], 0.5) == []
    assert exact_copies(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)).tolist() == []


# ---------------------------------------------------------------- Python's docs


@cache
def python_docs(threshold, folder):
    """Return the documents of a tenth of the standard library without copies."""
    from pion.data.documents.python_docs import documents

    with pytest.MonkeyPatch.context() as patch:
        read_only_a_part(patch, folder / "library", every=10)
        texts = [document.text for document in documents()]
    return left([(text, None) for text in texts], threshold)[0]


def left(mixed, threshold) -> tuple[list[str], set[int]]:
    """Return the texts without exact and near copies, and the places of those left out."""
    texts = [text for text, _ in mixed]
    exact = exact_copies(measure(texts).hashes, np.ones(len(texts), dtype=bool))
    near = originals(texts, threshold, exact == NONE)
    gone = {n for n in range(len(texts)) if exact[n] != NONE or near[n] != NONE}
    return [text for n, text in enumerate(texts) if n not in gone], gone


@pytest.mark.parametrize(
    "change",
    [one if one == "all four" else pytest.param(one, marks=pytest.mark.soak) for one in CHANGES],
)
def test_of_near_copies_planted_in_python_docs_95_percent_are_found_and_1_percent_of_the_rest(
    change, tmp_path_factory
):
    folder, threshold = tmp_path_factory.getbasetemp(), 0.6
    texts = python_docs(threshold, folder)
    mixed = plant(texts, 0.2, change)
    _, gone = left(mixed, threshold)
    first = {}
    for place, (_, number) in enumerate(mixed):
        if number is not None:
            first[number] = place
    place_of = {text: place for place, (text, number) in enumerate(mixed) if number is None}
    pairs = [(place_of[texts[number]], place) for number, place in first.items()]
    found = sum(max(pair) in gone for pair in pairs)
    # Of each pair, the later one is to go. Whatever else goes was taken by mistake.
    wrong = len(gone - {max(pair) for pair in pairs}) / len(texts)
    assert found / len(pairs) >= 0.95, f"{found} of {len(pairs)}"
    assert wrong < 0.01
