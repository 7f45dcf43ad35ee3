"""The words of a text, those of an item that count, and the n-grams of items."""

from random import Random

import numpy as np
import pytest

from pion.data.overlap.items import Item, ItemSet, counted_words
from pion.data.overlap.ngrams import TEMPLATE_ITEMS, ngrams_of
from pion.data.overlap.words import MOST_BYTES, split_words, words_of


def words(text):
    return [word.decode() for word in split_words(text.encode())]


def test_words_are_runs_of_letters_and_digits_in_lower_case():
    assert words("Hello, WORLD!\r\n\tx2=3.14 (don't_stop)") == [
        *("hello", "world", "x2", "3", "14", "don", "t", "stop")
    ]


# U+2080 is E2 82 80, U+20AC E2 82 AC, Â (C3 82): their first or last bytes are also in marks.
@pytest.mark.parametrize("text", ["Ünder naïve ÉCOLE", "a₀b €5 Ân", "今日は東京タワーに行きました"])
def test_characters_beyond_ascii_belong_to_words_and_keep_their_case(text):
    assert words(text) == text.replace("COLE", "cole").split()


@pytest.mark.parametrize("mark", ["“", "”", "’", "–", "—", "…", "«", "»", "\u00a0", "\u2028", "·"])
def test_typographic_punctuation_is_between_words(mark):
    assert words(f"one{mark}two{mark} three") == ["one", "two", "three"]


@pytest.mark.parametrize("text", [b"", b" \n", b"\xe2", b"\xe2\x80", b"\xc2", b"\x80", b"a\xc2"])
def test_any_bytes_have_words(text):
    assert len(words_of(text).starts) == len(split_words(text))


def test_words_begin_where_they_do():
    assert words_of("  One “two”,x".encode()).starts.tolist() == [2, 9, 16]


def test_equal_runs_of_words_have_equal_hashes_wherever_they_are():
    first = words_of(b"the quick brown fox jumps over the lazy dog")
    again = words_of("something ELSE before: Quick--brown\n\nFOX “jumps” and after".encode())
    place = 3
    for length in (1, 2, 4):
        one = first.run_hashes(np.array([1]), length)
        assert one == again.run_hashes(np.array([place]), length)


def test_different_runs_of_words_have_different_hashes():
    """All runs of 1 to 4 words of a text of 20,000 words, compared as words and as hashes."""
    chance = Random(0)
    vocabulary = ["".join(chance.choices("ab", k=chance.randint(1, 12))) for _ in range(3000)]
    text = chance.choices(vocabulary, k=20_000)
    found = words_of(" ".join(text).encode())
    plain, hashes = set(), set()
    for length in range(1, 5):
        plain |= {tuple(text[n : n + length]) for n in range(len(text) - length + 1)}
        hashes |= set(found.run_hashes(slice(None), length).tolist())
    assert len(hashes) == len(plain)


def test_moving_the_border_of_two_words_changes_the_hash():
    one, two = words_of(b"ab c"), words_of(b"a bc")
    assert one.run_hashes(np.array([0]), 2) != two.run_hashes(np.array([0]), 2)


def test_more_bytes_than_fit_are_refused():
    with pytest.raises(ValueError, match="at most"):
        words_of(b"x" * (MOST_BYTES + 1))


# ---------------------------------------------------------------- items


def test_only_the_last_forty_words_count():
    passage = " ".join(f"p{n}" for n in range(100))
    words, answer = counted_words(Item(f"{passage}. Who was it?", "Ada Lovelace"))
    assert words == [f"p{n}".encode() for n in range(65, 100)] + [
        *(b"who", b"was", b"it", b"ada", b"lovelace")
    ]
    assert answer == 2


def test_an_answer_of_more_than_forty_words_leaves_no_question():
    words, answer = counted_words(Item("Why?", " ".join(f"w{n}" for n in range(50))))
    assert words == [f"w{n}".encode() for n in range(10, 50)]
    assert answer == 40


def test_question_and_answer_never_make_one_word():
    assert counted_words(Item("the ans", "wer")) == ([b"the", b"ans", b"wer"], 1)


def test_half_a_character_is_no_word():
    assert counted_words(Item("one \ud800 two", "")) == ([b"one", b"two"], 0)


@pytest.mark.parametrize(
    "changed",
    [[Item("q ", "a")], [Item("q", "a", "passage")], [Item("q", "a")] * 2, [Item("qa", "")]],
)
def test_the_digest_of_a_set_is_that_of_its_texts_only(changed):
    items = [Item("q", "a")]
    assert ItemSet("a", items).digest == ItemSet("b", items, [Item("c", "")]).digest
    assert ItemSet("a", changed).digest != ItemSet("a", items).digest


# ---------------------------------------------------------------- n-grams


def item(words, answer=1, name="w"):
    texts = [f"{name}{n}" for n in range(words)]
    return Item(" ".join(texts[: words - answer]), " ".join(texts[words - answer :]))


def counts(items):
    return np.bincount(ngrams_of(items).items, minlength=len(items)).tolist()


@pytest.mark.parametrize(
    ("words", "ngrams"), [(0, 0), (7, 0), (8, 1), (12, 1), (13, 1), (14, 2), (40, 28), (90, 28)]
)
def test_how_many_ngrams_an_item_has(words, ngrams):
    assert counts([item(words, answer=min(words, 1))]) == [ngrams]


def test_an_item_of_eight_to_twelve_words_is_one_ngram_of_its_length():
    for words in range(8, 13):
        found = ngrams_of([item(words)])
        text = " ".join(f"w{n}" for n in range(words)).encode()
        assert found.hashes == words_of(text).run_hashes(np.array([0]), words)
        assert found.lengths == {words}


def test_an_ngram_that_an_item_has_twice_is_one():
    once = " ".join(f"w{n}" for n in range(13))
    assert counts([Item(once, once)]) == [13]  # 14 runs, of which the first and last are equal


def test_the_ngrams_that_end_in_the_answer_are_known():
    found = ngrams_of([item(20, answer=3)])
    assert np.count_nonzero(found.in_answer) == 3
    assert len(found.in_answer) == 8


def test_an_item_without_words_in_its_answer_has_no_such_ngram():
    assert not ngrams_of([Item(item(20).question, "!")]).in_answer.any()


def test_of_a_repeated_ngram_the_one_in_the_answer_counts():
    once = " ".join(f"w{n}" for n in range(13))
    found = ngrams_of([Item(f"{once} x y z", once)])
    repeated = words_of(once.encode()).run_hashes(np.array([0]), 13)[0]
    assert found.in_answer[found.hashes == repeated].tolist() == [True]


def templated(items):
    template = " ".join(f"t{n}" for n in range(20))
    return [Item(f"{template} {' '.join(f'q{k}x{n}' for n in range(9))}", "") for k in range(items)]


def test_an_ngram_of_ten_items_is_a_template_and_is_dropped():
    # Of 29 words, 8 runs of 13 are within the template.
    assert counts(templated(TEMPLATE_ITEMS - 1)) == [17] * (TEMPLATE_ITEMS - 1)
    assert counts(templated(TEMPLATE_ITEMS)) == [9] * TEMPLATE_ITEMS


def test_a_word_without_end_does_not_stop_the_others():
    endless = Item("x" * 1_000_000 + " " + item(12).question, "yes")
    assert counts([endless, item(20)]) == [1, 8]
