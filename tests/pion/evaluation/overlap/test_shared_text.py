from pion.evaluation.overlap.items import Item
from pion.evaluation.overlap.shared_text import MOST_SHOWN, shared_text

WORDS = [f"w{n}" for n in range(20)]
ITEM = Item(" ".join(WORDS), "end")


def test_the_shared_words_are_shown_as_the_row_has_them() -> None:
    row = f"before. “{', '.join(WORDS).upper()}” – END. after"
    assert shared_text(ITEM, row.encode()) == f"{', '.join(WORDS).upper()}” – END"


def test_what_only_lies_between_shared_parts_is_shown_too() -> None:
    row = f"x {' '.join(WORDS[:14])} between {' '.join(WORDS[5:19])} y"
    assert shared_text(ITEM, row.encode()) == row[2:-2]


def test_a_long_text_is_cut() -> None:
    row = f"{' '.join(WORDS[:14])}{' é' * 1000} {' '.join(WORDS)}"
    shown = shared_text(ITEM, row.encode())
    assert shown.endswith("…")
    assert len(shown.encode()) <= MOST_SHOWN + 6


def test_a_row_that_shares_nothing_shows_nothing() -> None:
    assert shared_text(ITEM, b"something else") == ""
    assert shared_text(Item("too", "short"), b"too short") == ""


def test_an_item_of_eight_words_is_shown() -> None:
    short = Item("one two three four five six seven", "eight")
    assert shared_text(short, b"x One Two Three Four Five Six Seven: eight!") == (
        "One Two Three Four Five Six Seven: eight"
    )
