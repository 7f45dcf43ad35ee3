"""The scores of single questions or documents, in few bytes, and the difference between two models
on the same ones.

Two models that answer the same questions agree on most. So the error of the difference by question
is far smaller than the errors of the two sides.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from pion.evaluation.shares import plain_mean, ratio, share_ratio, share_sem

# Numbers by name; that of `name` has its standard error in `name_sem`.
Numbers = dict[str, float]
# Of one task. The largest task of CORE has 20,321 questions.
MOST_ITEMS = 10_000_000


@dataclass(frozen=True)
class ItemScores:
    """The scores of questions, or of documents, in their order.

    Attributes:
        scores: (n,), of questions, most of them 0 or 1; of documents, the bits.
        clusters: (n,), the number of the passage that each question is about; None if questions are
            independent.
        sizes: (n,), the bytes of documents; None for questions, which all weigh the same.
        sources: (n,), the number of the source of each document, if the mean is the plain mean of
            the sources; otherwise None.
    """

    scores: np.ndarray
    clusters: np.ndarray | None = None
    sizes: np.ndarray | None = None
    sources: np.ndarray | None = None

    def by_source(self) -> list[ItemScores]:
        """Return the documents of each source."""
        of = np.zeros(len(self.scores)) if self.sources is None else self.sources
        parts = (of == number for number in np.unique(of))
        return [ItemScores(self.scores[part], sizes=self.weights[part]) for part in parts]

    @property
    def units(self) -> np.ndarray:
        """The number of what each score counts with: its passage, or itself."""
        return np.arange(len(self.scores)) if self.clusters is None else self.clusters

    @property
    def weights(self) -> np.ndarray:
        """How much each score weighs: the bytes of a document, or 1."""
        return np.ones(len(self.scores)) if self.sizes is None else self.sizes


def item_scores(
    scores: Sequence[float] | np.ndarray,
    clusters: Sequence[str] | np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> ItemScores:
    """Return the scores of questions; questions with equal `clusters` are about one passage."""
    cluster_numbers = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    return ItemScores(np.asarray(scores, dtype=np.float64), cluster_numbers, sizes)


def pack(items: ItemScores) -> dict[str, Any]:
    """Return scores as a JSON object: a bit for each question, and apart what is not 0 or 1."""
    right = items.scores == 1
    places = np.flatnonzero(~right & (items.scores != 0))
    packed: dict[str, Any] = {"n": len(items.scores), "right": _text(np.packbits(right))}
    if len(places):
        packed |= {
            "places": _text(places.astype("<i4")),
            "scores": _text(items.scores[places].astype("<f8")),
        }
    if items.clusters is not None:
        packed["clusters"] = _text(items.clusters.astype("<i4"))
    if items.sizes is not None:
        packed["sizes"] = _text(items.sizes.astype("<i8"))
    if items.sources is not None:
        packed["sources"] = _text(items.sources.astype("<i4"))
    return packed


def unpack(packed: Mapping[str, Any]) -> ItemScores:
    """Return the scores that `pack` has written. Raises ValueError for anything else."""
    n = packed.get("n")
    if type(n) is not int or not 0 <= n <= MOST_ITEMS:
        raise ValueError("the number of questions is missing")
    bits = _array(packed, "right", "u1")
    if len(bits) != -(-n // 8):
        raise ValueError(f"{n} questions have other bits")
    scores = np.unpackbits(bits, count=n).astype(np.float64)
    if "places" in packed:
        places, others = _array(packed, "places", "<i4"), _array(packed, "scores", "<f8")
        if len(places) != len(others) or np.any((places < 0) | (places >= n)):
            raise ValueError("scores are at places that no question has")
        scores[places] = others
    clusters = _array(packed, "clusters", "<i4") if "clusters" in packed else None
    if clusters is not None and (len(clusters) != n or np.any((clusters < 0) | (clusters >= n))):
        raise ValueError("not every question has a passage")
    sizes = _array(packed, "sizes", "<i8") if "sizes" in packed else None
    if sizes is not None and (len(sizes) != n or np.any(sizes < 0)):
        raise ValueError("not every document has a size")
    sources = _array(packed, "sources", "<i4") if "sources" in packed else None
    if sources is not None and (sizes is None or len(sources) != n):
        raise ValueError("not every document has a source")
    return ItemScores(scores, clusters, sizes, sources)


def difference(before: ItemScores, after: ItemScores) -> tuple[float, float]:
    """Return the mean of `after` - `before` by question, or by byte of documents, and its standard
    error (NaN for a single one).

    Questions about one passage count together; see `ratio`. Raises ValueError if the two were not
    measured on the same.
    """
    same = np.array_equal(before.weights, after.weights)
    parts = [[len(part.scores) for part in side.by_source()] for side in (before, after)]
    same &= parts[0] == parts[1]
    if not same or not np.array_equal(before.units, after.units):
        raise ValueError("the two were not measured on the same")
    if before.sources is not None:
        return plain_mean([*map(difference, before.by_source(), after.by_source())])
    change = after.scores - before.scores
    if not np.isfinite(change).all() or not len(change):
        return math.nan, math.nan
    units = before.units
    value, error = ratio(np.bincount(units, change), np.bincount(units, before.weights))
    if error == 0 and before.sizes is None:  # no answer of n differs: that is no certainty
        error = share_sem(0, len(np.unique(units)))
    return value, error


def mean(items: ItemScores) -> tuple[float, float]:
    """Return the mean score of questions, and its standard error (NaN for a single passage).

    Questions about one passage count together; see `ratio`. Where all scores are 0 or all are 1,
    the error is not 0: see `share_ratio`.
    """
    if not len(items.scores):
        return math.nan, math.nan
    if items.sources is not None:
        return plain_mean([*map(mean, items.by_source())])
    of_scores = share_ratio if items.sizes is None else ratio
    units = items.units
    return of_scores(np.bincount(units, items.scores), np.bincount(units, items.weights))


def before_and_after(
    before: Mapping[str, ItemScores], after: Mapping[str, ItemScores]
) -> dict[str, Numbers]:
    """Return the means `before` and `after`, and their `change`, by the names of measures, each
    with its standard error under `…_sem`. Raises as `difference`."""
    return {
        "before": with_errors({name: mean(scores) for name, scores in before.items()}),
        "after": with_errors({name: mean(scores) for name, scores in after.items()}),
        "change": with_errors({name: difference(before[name], after[name]) for name in before}),
    }


def with_errors(numbers: Mapping[str, tuple[float, float]]) -> Numbers:
    """Return numbers as a record has them: each by its name, and its standard error next to it."""
    return {
        f"{name}{end}": number
        for name, both in numbers.items()
        for end, number in zip(("", "_sem"), both, strict=True)
    }


@dataclass(frozen=True)
class TaskScores:
    """The scores of a task's items (or their differences), the error of their mean, and what
    decides how it counts.

    `questions` is the digest of the task's questions.
    """

    sem: float
    baseline: float
    questions: str
    scores: Sequence[float] | np.ndarray


def mean_sem(tasks: Sequence[TaskScores]) -> float:
    """Return the standard error of the mean of centred scores over tasks, of which some ask the
    same questions."""
    slopes = [1 / (1 - task.baseline) for task in tasks]
    variance = math.fsum((slope * task.sem) ** 2 for slope, task in zip(slopes, tasks))
    for (one, slope), (other, again) in combinations(zip(tasks, slopes), 2):
        # Tasks that ask the same items in another way, as hellaswag with and without examples.
        count = len(one.scores)
        if one.questions == other.questions and count == len(other.scores) and count > 1:
            shared = float(np.cov(one.scores, other.scores)[0, 1]) / count
            variance += 2 * slope * again * shared
    return math.sqrt(max(variance, 0.0)) / len(tasks)


class Scored(NamedTuple):
    """The record of what was measured of a model's answers, and the credit of each of its items: 1
    for a right answer, 1/k for a tie of k, and 0 for the others."""

    record: dict[str, Any]
    credits: np.ndarray


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _array(packed: Mapping[str, Any], name: str, dtype: str) -> np.ndarray:
    text = packed.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is missing")
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{name} can't be read ({error})") from None
