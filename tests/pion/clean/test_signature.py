"""Signatures: the estimate of the similarity is right, and the same on every machine."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise

import numpy as np
import pytest

from pion.clean.measure import measure
from pion.clean.signature import COMPARED, HASHES, band_keys, rows_of_band, similarity

NUMBERS = [f"w{n}" for n in range(5000)]


def pairs_of(words: list[str]) -> set[tuple[str, str]]:
    return set(pairwise(words))


@pytest.mark.parametrize("words", [20, 60, 1000])
def test_the_estimate_has_no_bias_and_the_error_that_the_theory_says(words: int) -> None:
    draw = random.Random(words)
    firsts, seconds, true = [], [], []
    for _ in range(300):
        first = draw.choices(NUMBERS, k=words)
        second = first[: draw.randint(words // 3, words)] + draw.choices(NUMBERS, k=words // 4)
        own, other = pairs_of(first), pairs_of(second)
        firsts.append(" ".join(first))
        seconds.append(" ".join(second))
        true.append(len(own & other) / len(own | other))
    shares = np.array(true)
    error = similarity(measure(firsts).signatures, measure(seconds).signatures) - shares
    expected = np.sqrt((shares * (1 - shares)).mean() / HASHES)
    assert abs(error.mean()) < 4 * expected / np.sqrt(len(shares))
    assert 0.85 * expected < error.std() < 1.15 * expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_documents_at_the_threshold_are_compared_almost_surely(threshold: float) -> None:
    rows = rows_of_band(threshold)
    assert 1 <= rows <= HASHES
    assert 1 - (1 - threshold**rows) ** (HASHES // rows) >= COMPARED


def test_a_higher_threshold_compares_fewer_documents() -> None:
    rows = [rows_of_band(threshold) for threshold in (0.3, 0.5, 0.7, 0.9, 1.0)]
    assert rows == sorted(rows)
    assert rows[-1] == HASHES


def test_equal_bands_have_equal_keys_and_each_band_has_its_own() -> None:
    own = measure(["one two three four five six seven eight"] * 2).signatures
    assert band_keys(own, 0, 3)[0] == band_keys(own, 0, 3)[1]
    same = np.tile(own[:, :3], HASHES // 3)
    assert len({int(band_keys(same, band, 3)[0]) for band in range(HASHES // 3)}) == HASHES // 3


def test_signatures_never_change() -> None:
    """A job that was cleaned before would leave out other documents: raise CLEAN_RULES then."""
    text = "The quick brown fox jumps over the lazy dog, and the dog — écoute — sleeps on."
    found = measure([text, text * 50]).signatures.astype("<u2").tobytes()
    assert hashlib.sha256(found).hexdigest()[:16] == "db666174a72dfd14"
