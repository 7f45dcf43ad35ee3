"""What may be wrong with a document by itself, each rule with its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from pion.clean.measure import MeasuredText
from pion.data.documents.languages import language_of


class Verdict(IntEnum):
    """Whether a document is kept, or the first rule by which it is left out."""

    KEPT = 0
    TOO_SHORT = 1
    TOO_LONG = 2
    REPETITION = 3
    LANGUAGE = 4
    EVALUATION = 5
    EXACT_COPY = 6
    NEAR_COPY = 7

    @property
    def words(self) -> str:
        """What people read."""
        return _WORDS[self]


_WORDS = {
    Verdict.KEPT: "kept",
    Verdict.TOO_SHORT: "too short",
    Verdict.TOO_LONG: "too long",
    Verdict.REPETITION: "repeats itself",
    Verdict.LANGUAGE: "other language",
    Verdict.EVALUATION: "holds an evaluation item",
    Verdict.EXACT_COPY: "exact copy",
    Verdict.NEAR_COPY: "near-copy",
}


@dataclass(frozen=True)
class Rules:
    """The bounds. None or empty: no such rule.

    Attributes:
        min_words: the fewest words of a document.
        max_words: the most words of a document.
        max_repetition: the largest share of repeated runs of words (`MeasuredText.repeated`).
        languages: the languages of documents (`language_of`).
    """

    min_words: int | None = None
    max_words: int | None = None
    max_repetition: float | None = None
    languages: tuple[str, ...] = ()


def judge_alone(rules: Rules, texts: Sequence[str], measured: MeasuredText) -> np.ndarray:
    """Return the verdict about each document, (documents,) uint8. `measured` is of these texts."""
    verdicts = np.zeros(len(texts), dtype=np.uint8)

    def leave_out(which: np.ndarray, verdict: Verdict) -> None:
        verdicts[which & (verdicts == Verdict.KEPT)] = verdict

    if rules.min_words is not None:
        leave_out(measured.words < rules.min_words, Verdict.TOO_SHORT)
    if rules.max_words is not None:
        leave_out(measured.words > rules.max_words, Verdict.TOO_LONG)
    if rules.max_repetition is not None:
        leave_out(measured.repeated > rules.max_repetition, Verdict.REPETITION)
    if rules.languages:
        for index in np.flatnonzero(verdicts == Verdict.KEPT).tolist():
            if language_of(texts[index]) not in rules.languages:
                verdicts[index] = Verdict.LANGUAGE
    return verdicts
