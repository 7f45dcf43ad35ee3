"""The numbers of documents: words, repetition, equality. They don't depend on other documents."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pion.clean.measure import measure
from pion.data.overlap.words import MOST_BYTES, split_words

LONG = " ".join(f"word{n}" for n in range(60_000))
HUNDRED = " ".join(f"w{n}" for n in range(100))


def test_words_are_those_of_the_search_for_evaluation_sets() -> None:
    texts = ["", "…", "one", "Don't – stop!", "naïve café\n\ncode_name x=3", LONG]
    counts = [len(split_words(text.encode())) for text in texts]
    assert measure(texts).words.tolist() == counts


def test_the_numbers_of_a_document_do_not_depend_on_its_neighbours() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(0, 40))) for _ in range(200)]
    texts += [LONG, "", "short", LONG.upper()]
    draw.shuffle(texts)
    together = measure(texts)
    for place, text in enumerate(texts):
        for name, numbers in vars(measure([text])).items():
            assert np.array_equal(numbers[0], getattr(together, name)[place]), (name, text[:80])


def test_a_text_of_any_length_has_the_same_signature_in_another_case() -> None:
    assert len(LONG) > 2 * MOST_BYTES
    first, second = measure([LONG]), measure([LONG.upper()])
    assert first.signatures.any()
    assert np.array_equal(first.signatures, second.signatures)
    assert np.array_equal(first.hashes, second.hashes)


def test_a_text_without_any_space_is_measured_in_bounded_parts() -> None:
    measured = measure(["x" * (3 * MOST_BYTES), "漢" * MOST_BYTES])
    assert measured.words.tolist() == [3, 3]
    endless = measure(["x" * (10 * MOST_BYTES), "one two"])
    assert endless.words.tolist() == [10, 2]
    assert not endless.signatures.any()


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (" ".join(f"w{n}" for n in range(100)), 0.0, 0.0),
        (
            " ".join(f"w{n}" for n in range(100)) + " " + " ".join(f"w{n}" for n in range(100)),
            0.46,
            0.5,
        ),
        ("buy now " * 100, 0.98, 1.0),
        ("twelve words " * 6, 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_repeated_is_the_share_of_runs_that_came_before(
    text: str, least: float, most: float
) -> None:
    assert least <= measure([text]).repeated[0] <= most


def test_equal_runs_of_two_documents_are_no_repetition() -> None:
    assert measure([HUNDRED, HUNDRED, HUNDRED]).repeated.tolist() == [0, 0, 0]


def test_documents_without_words_are_equal_only_to_themselves() -> None:
    hashes = measure(["…", "!!!", "… ", "", "漢字", "漢語"]).hashes
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 5


def test_nothing_is_measured_of_no_documents() -> None:
    assert len(measure([]).words) == 0
