"""The numbers of documents: words, repetition, equality. They don't depend on other documents."""

import hashlib
import random
from itertools import pairwise

import numpy as np
import pytest

from pion.clean.measure import measure
from pion.clean.rules import Rules, Verdict, judge_alone
from pion.clean.signature import COMPARED, HASHES, band_keys, rows_of_band, similarity
from pion.data.overlap.words import MOST_BYTES, split_words

LONG = " ".join(f"word{n}" for n in range(60_000))
HUNDRED = " ".join(f"w{n}" for n in range(100))


def test_words_are_those_of_the_search_for_evaluation_sets():
    texts = ["", "…", "one", "Don't – stop!", "naïve café\n\ncode_name x=3", LONG]
    counts = [len(split_words(text.encode())) for text in texts]
    assert measure(texts).words.tolist() == counts


def test_the_numbers_of_a_document_do_not_depend_on_its_neighbours():
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(0, 40))) for _ in range(200)]
    texts += [LONG, "", "short", LONG.upper()]
    draw.shuffle(texts)
    together = measure(texts)
    for place, text in enumerate(texts):
        for name, numbers in vars(measure([text])).items():
            assert np.array_equal(numbers[0], getattr(together, name)[place]), (name, text[:80])


def test_a_text_of_any_length_has_the_same_signature_in_another_case():
    assert len(LONG) > 2 * MOST_BYTES
    first, second = measure([LONG]), measure([LONG.upper()])
    assert first.signatures.any()
    assert np.array_equal(first.signatures, second.signatures)
    assert np.array_equal(first.hashes, second.hashes)


def test_a_text_without_any_space_is_measured_in_bounded_parts():
    measured = measure(["x" * (3 * MOST_BYTES), "漢" * MOST_BYTES])
    assert measured.words.tolist() == [3, 3]
    endless = measure(["x" * (10 * MOST_BYTES), "one two"])
    assert endless.words.tolist() == [10, 2]
    assert not endless.signatures.any()


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (HUNDRED, 0.0, 0.0),
        (f"{HUNDRED} {HUNDRED}", 0.46, 0.5),
        ("buy now " * 100, 0.98, 1.0),
        ("twelve words " * 6, 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_repeated_is_the_share_of_runs_that_came_before(text, least, most):
    assert least <= measure([text]).repeated[0] <= most


def test_equal_runs_of_two_documents_are_no_repetition():
    assert measure([HUNDRED, HUNDRED, HUNDRED]).repeated.tolist() == [0, 0, 0]


def test_documents_without_words_are_equal_only_to_themselves():
    hashes = measure(["…", "!!!", "… ", "", "漢字", "漢語"]).hashes
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 5


def test_nothing_is_measured_of_no_documents():
    assert len(measure([]).words) == 0


# ---------------------------------------------------------------- rules


ENGLISH = "The cat that was in the garden is not on the roof, and you are with it for the day."
GERMAN = "Die Katze ist nicht auf dem Dach, und der Hund ist mit den Kindern im Garten für sich."
CODE = "x1 = y2 + z3; if x1 > y2: print(z3, sep='') # 12 34 56"
TWICE = f"{ENGLISH} {ENGLISH}"


def verdict(rules, text):
    return Verdict(judge_alone(rules, [text], measure([text]))[0])


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        (Rules(), "", Verdict.KEPT),
        (Rules(min_words=3), "two words", Verdict.TOO_SHORT),
        (Rules(min_words=2), "two words", Verdict.KEPT),
        (Rules(max_words=1), "two words", Verdict.TOO_LONG),
        (Rules(max_words=2), "two words", Verdict.KEPT),
        (Rules(max_repetition=0.2), TWICE, Verdict.REPETITION),
        (Rules(max_repetition=0.5), TWICE, Verdict.KEPT),
        (Rules(languages=("English",)), ENGLISH, Verdict.KEPT),
        (Rules(languages=("English",)), GERMAN, Verdict.LANGUAGE),
        (Rules(languages=("English", "German")), GERMAN, Verdict.KEPT),
        (Rules(languages=("English",)), CODE, Verdict.LANGUAGE),
        (Rules(languages=("Greek",)), "Η γάτα είναι στον κήπο", Verdict.KEPT),
        # The first rule is named.
        (Rules(min_words=100, max_words=5, languages=("Greek",)), ENGLISH, Verdict.TOO_SHORT),
    ],
)
def test_a_rule_leaves_out_what_is_beyond_its_bound(rules, text, expected):
    assert verdict(rules, text) == expected


def test_each_verdict_has_its_own_words():
    assert len({verdict.words for verdict in Verdict}) == len(Verdict)


# ---------------------------------------------------------------- signatures


NUMBERS = [f"w{n}" for n in range(5000)]


def pairs_of(words):
    return set(pairwise(words))


@pytest.mark.parametrize("words", [20, 60, 1000])
def test_the_estimate_has_no_bias_and_the_error_that_the_theory_says(words):
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
def test_documents_at_the_threshold_are_compared_almost_surely(threshold):
    rows = rows_of_band(threshold)
    assert 1 <= rows <= HASHES
    assert 1 - (1 - threshold**rows) ** (HASHES // rows) >= COMPARED


def test_a_higher_threshold_compares_fewer_documents():
    rows = [rows_of_band(threshold) for threshold in (0.3, 0.5, 0.7, 0.9, 1.0)]
    assert rows == sorted(rows)
    assert rows[-1] == HASHES


def test_equal_bands_have_equal_keys_and_each_band_has_its_own():
    own = measure(["one two three four five six seven eight"] * 2).signatures
    assert band_keys(own, 0, 3)[0] == band_keys(own, 0, 3)[1]
    same = np.tile(own[:, :3], HASHES // 3)
    assert len({int(band_keys(same, band, 3)[0]) for band in range(HASHES // 3)}) == HASHES // 3


def test_signatures_never_change():
    """A job that was cleaned before would leave out other documents: raise CLEAN_RULES then."""
    text = "The quick brown fox jumps over the lazy dog, and the dog — écoute — sleeps on."
    found = measure([text, text * 50]).signatures.astype("<u2").tobytes()
    assert hashlib.sha256(found).hexdigest()[:16] == "db666174a72dfd14"
