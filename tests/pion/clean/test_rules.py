"""Each rule of a document alone, its bound, and which rule is named."""

from __future__ import annotations

import pytest

from pion.clean.measure import measure
from pion.clean.rules import Rules, Verdict, judge_alone

ENGLISH = "The cat that was in the garden is not on the roof, and you are with it for the day."
GERMAN = "Die Katze ist nicht auf dem Dach, und der Hund ist mit den Kindern im Garten für sich."
CODE = "x1 = y2 + z3; if x1 > y2: print(z3, sep='') # 12 34 56"
TWICE = f"{ENGLISH} {ENGLISH}"


def verdict(rules: Rules, text: str) -> Verdict:
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
def test_a_rule_leaves_out_what_is_beyond_its_bound(
    rules: Rules, text: str, expected: Verdict
) -> None:
    assert verdict(rules, text) == expected


def test_each_verdict_has_its_own_words() -> None:
    assert len({verdict.words for verdict in Verdict}) == len(Verdict)
