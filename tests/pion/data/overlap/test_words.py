from random import Random

import numpy as np
import pytest

from pion.data.overlap.words import MOST_BYTES, split_words, words_of


def words(text: str) -> list[str]:
    return [word.decode() for word in split_words(text.encode())]


def test_words_are_runs_of_letters_and_digits_in_lower_case() -> None:
    assert words("Hello, WORLD!\r\n\tx2=3.14 (don't_stop)") == [
        *("hello", "world", "x2", "3", "14", "don", "t", "stop")
    ]


def test_letters_beyond_ascii_belong_to_words_and_keep_their_case() -> None:
    assert words("Ünder naïve ÉCOLE") == ["Ünder", "naïve", "École"]


@pytest.mark.parametrize("mark", ["“", "”", "’", "–", "—", "…", "«", "»", "\u00a0", "\u2028", "·"])
def test_typographic_punctuation_is_between_words(mark: str) -> None:
    assert words(f"one{mark}two{mark} three") == ["one", "two", "three"]


def test_a_character_that_only_begins_like_typographic_punctuation_is_a_letter() -> None:
    # U+2080 is E2 82 80, U+20AC E2 82 AC, Â (C3 82): their first or last bytes are also in marks.
    assert words("a₀b €5 Ân") == ["a₀b", "€5", "Ân"]


def test_a_text_without_spaces_has_one_long_word() -> None:
    assert len(words("今日は東京タワーに行きました")) == 1


@pytest.mark.parametrize("text", [b"", b" \n", b"\xe2", b"\xe2\x80", b"\xc2", b"\x80", b"a\xc2"])
def test_any_bytes_have_words(text: bytes) -> None:
    assert len(words_of(text).starts) == len(split_words(text))


def test_words_begin_where_they_do() -> None:
    assert words_of("  One “two”,x".encode()).starts.tolist() == [2, 9, 16]


def test_equal_runs_of_words_have_equal_hashes_wherever_they_are() -> None:
    first = words_of(b"the quick brown fox jumps over the lazy dog")
    again = words_of("something ELSE before: Quick--brown\n\nFOX “jumps” and after".encode())
    place = 3
    for length in (1, 2, 4):
        one = first.run_hashes(np.array([1]), length)
        assert one == again.run_hashes(np.array([place]), length)


def test_different_runs_of_words_have_different_hashes() -> None:
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


def test_moving_the_border_of_two_words_changes_the_hash() -> None:
    one, two = words_of(b"ab c"), words_of(b"a bc")
    assert one.run_hashes(np.array([0]), 2) != two.run_hashes(np.array([0]), 2)


def test_more_bytes_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        words_of(b"x" * (MOST_BYTES + 1))
