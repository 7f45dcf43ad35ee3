import numpy as np
import pytest

from pion.data.overlap.items import Item
from pion.data.overlap.ngrams import TEMPLATE_ITEMS, ngrams_of
from pion.data.overlap.words import words_of


def item(words: int, answer: int = 1, name: str = "w") -> Item:
    texts = [f"{name}{n}" for n in range(words)]
    return Item(" ".join(texts[: words - answer]), " ".join(texts[words - answer :]))


def counts(items: list[Item]) -> list[int]:
    return np.bincount(ngrams_of(items).items, minlength=len(items)).tolist()


@pytest.mark.parametrize(
    ("words", "ngrams"), [(0, 0), (7, 0), (8, 1), (12, 1), (13, 1), (14, 2), (40, 28), (90, 28)]
)
def test_how_many_ngrams_an_item_has(words: int, ngrams: int) -> None:
    assert counts([item(words, answer=min(words, 1))]) == [ngrams]


def test_an_item_of_eight_to_twelve_words_is_one_ngram_of_its_length() -> None:
    for words in range(8, 13):
        found = ngrams_of([item(words)])
        text = " ".join(f"w{n}" for n in range(words)).encode()
        assert found.hashes == words_of(text).run_hashes(np.array([0]), words)
        assert found.lengths == {words}


def test_an_ngram_that_an_item_has_twice_is_one() -> None:
    once = " ".join(f"w{n}" for n in range(13))
    assert counts([Item(once, once)]) == [13]  # 14 runs, of which the first and last are equal


def test_the_ngrams_that_end_in_the_answer_are_known() -> None:
    found = ngrams_of([item(20, answer=3)])
    assert np.count_nonzero(found.in_answer) == 3
    assert len(found.in_answer) == 8


def test_an_item_without_words_in_its_answer_has_no_such_ngram() -> None:
    assert not ngrams_of([Item(item(20).question, "!")]).in_answer.any()


def test_of_a_repeated_ngram_the_one_in_the_answer_counts() -> None:
    once = " ".join(f"w{n}" for n in range(13))
    found = ngrams_of([Item(f"{once} x y z", once)])
    repeated = words_of(once.encode()).run_hashes(np.array([0]), 13)[0]
    assert found.in_answer[found.hashes == repeated].tolist() == [True]


def templated(items: int) -> list[Item]:
    template = " ".join(f"t{n}" for n in range(20))
    return [Item(f"{template} {' '.join(f'q{k}x{n}' for n in range(9))}", "") for k in range(items)]


def test_an_ngram_of_ten_items_is_a_template_and_is_dropped() -> None:
    # Of 29 words, 8 runs of 13 are within the template.
    assert counts(templated(TEMPLATE_ITEMS - 1)) == [17] * (TEMPLATE_ITEMS - 1)
    assert counts(templated(TEMPLATE_ITEMS)) == [9] * TEMPLATE_ITEMS


def test_items_of_nothing_but_a_template_have_no_ngram() -> None:
    assert counts([item(20)] * TEMPLATE_ITEMS) == [0] * TEMPLATE_ITEMS


def test_no_items_have_no_ngrams() -> None:
    found = ngrams_of([])
    assert len(found.hashes) == len(found.items) == 0
    assert not found.lengths


def test_a_word_without_end_does_not_stop_the_others() -> None:
    endless = Item("x" * 1_000_000 + " " + item(12).question, "yes")
    assert counts([endless, item(20)]) == [1, 8]
