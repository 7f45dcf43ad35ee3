"""Words, sentences and bullets are counted as a reader would count them."""

from __future__ import annotations

import pytest

from pion.evaluation.instructions.units import bullets, sentences, words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("— … !", 0),
        ("Don't stop: it's well-known.", 4),
        ("- one\r\n- two", 2),
        ("1. one", 2),
        ("3.5 km", 2),
        ("the sea—it is wide", 5),
        ("Öl und Cafe\u0301", 3),
        ("हिन्दी में", 2),
        ("a\u00a0b\tc\n\nd", 4),
    ],
)
def test_words(text: str, count: int) -> None:
    assert words(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("It rains", 1),
        ("It rains. It snows.", 2),
        ("it rains. it snows.", 2),
        ("Does it rain?! Yes… It does.", 3),
        ("It is 3.5 km long. See example.org for more.", 2),
        (
            "Dr. Smith met J. K. Rowling, e.g. in the U.S. and at 5 p.m. in the U.K. Then he left.",
            2,
        ),
        ("They are old, so am I. We sleep.", 2),
        ('"Stop!" he said. "I know."', 2),
        ("He waited... and left.", 1),
        ("1. It rains.\r\n2. It snows.", 2),
        ("A title\r\n\r\nIt rains. (It snows.) **It hails.**", 4),
        ("雨が降る。雪も降る。", 2),
        ("Il pleut. Élan vital. Übung!", 3),
        ("It was 1999. Then came 2000.", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("- a\n- b", 2),
        ("Here:\r\n\r\n* a\r\n* b\r\nDone.", 2),
        ("• eins\n• zwei\n+ trois", 3),
        ("- 1. first\n- 2 cats\n- 3.5 km", 3),
        ("1. a\n2. b", 0),
        ("- a\n  - inner\n- b", 3),
        ("-5 degrees\n--- \n**bold**\n-\n- ", 0),
        ("a - b", 0),
        ("```\n- a\n```", 1),
    ],
)
def test_bullets(text: str, count: int) -> None:
    assert bullets(text) == count
