"""The language of a text, roughly."""

from collections import Counter

import pytest

from pion.data.documents.languages import LANGUAGES, OTHER, in_words, language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The boat that you saw was not on the river when we came to look for it.", "English"),
        (
            "Das Boot, das du gesehen hast, ist nicht mehr auf dem Fluss und auch nicht hier.",
            "German",
        ),
        (
            "Le bateau que vous avez vu est dans la rivière, et il ne sera pas là pour nous.",
            "French",
        ),
        ("El barco que viste no es del río, y se fue con los otros para una isla.", "Spanish"),
        ("Лодка, которую ты видел, ушла вниз по реке.", "Russian or another language in Cyrillic"),
        ("君が見た船は川を下って行った。", "Japanese"),
        ("你看见的那条船已经顺流而下了。", "Chinese"),
        ("배가 강을 따라 내려갔다.", "Korean"),
        ("x = f(y) + g(z ** 2)", OTHER),
        ("1 2 3", OTHER),
    ],
)
def test_it_is_guessed_from_letters_and_frequent_words(text, language):
    assert language_of(text) == language


def test_shares_are_in_words_the_most_frequent_first():
    assert in_words(Counter(English=92, German=7, French=1)) == "English 92%, German 7%, French 1%"


def test_every_language_that_is_returned_can_be_named_and_others_cannot():
    assert {"English", "Korean", "Arabic or Persian"} <= set(LANGUAGES)
    assert OTHER not in LANGUAGES
    assert len(set(LANGUAGES)) == len(LANGUAGES)
