"""How far a model agrees with labels of preferences, from the log-probabilities of its answers.

Several pairs may share a prompt, so prompts are the sample: all errors are clustered by them. The
errors of a change are those of the same pairs before and after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pion.evaluation.item_scores import (
    ItemScores,
    Numbers,
    difference,
    item_scores,
    mean,
    with_errors,
)
from pion.evaluation.shares import share_sem


@dataclass(frozen=True)
class LabelledAnswers:
    """Held-out answers, arrays (n,) in the order of their rows.

    Attributes:
        tokens: int64, how many tokens each has.
        preferred: bool, whether it is chosen or desired. Of pairs, every second one is, from the
            first one on.
        prompts: int64, the number of its prompt.
        paired: whether they are pairs.
    """

    tokens: np.ndarray
    preferred: np.ndarray
    prompts: np.ndarray
    paired: bool

    @property
    def items(self) -> int:
        """The number of pairs, or of single answers."""
        return len(self.tokens) // (2 if self.paired else 1)

    def scored(self, values: np.ndarray) -> ItemScores:
        """Return whether each pair is right: 1 if the chosen answer has the larger of `values`
        (n,), 0 if the rejected one has, and ½ for a tie.

        A single answer is right if its value is above 0 (desired) or below 0 (undesired). The score
        of what is not finite is NaN.
        """
        if self.paired:
            ahead, prompts = values[0::2] - values[1::2], self.prompts[0::2]
            finite = np.isfinite(values[0::2]) & np.isfinite(values[1::2])
        else:
            ahead, prompts = np.where(self.preferred, values, -values), self.prompts
            finite = np.isfinite(values)
        right = np.where(ahead == 0, 0.5, (ahead > 0).astype(float))
        return item_scores(np.where(finite, right, np.nan), prompts)

    def longer_wins(self) -> ItemScores:
        """Return how right the rule is that the longer answer of a pair is the chosen one."""
        return self.scored(self.tokens.astype(np.float64))


def agreement(answers: LabelledAnswers, scores: ItemScores) -> Numbers:
    """Return the accuracy. Of pairs, also return it where the chosen answer is longer and where it
    is shorter, and the first less the second as `length_bias`.

    What can't be said, because there are no such pairs, is left out.
    """
    numbers = {"accuracy": mean(scores)}
    lengths = _by_length(answers) if answers.paired else {}
    for name, where in lengths.items():
        if where.any():
            numbers[name] = mean(item_scores(scores.scores[where], scores.units[where]))
    if answers.paired and (bias := _bias(answers, scores)) is not None:
        numbers["length_bias"] = bias.value, bias.error
    return with_errors(numbers)


def changed(answers: LabelledAnswers, before: ItemScores, after: ItemScores) -> Numbers:
    """Return `after` less `before` of the accuracy and of the length bias, each with the error of
    the same pairs."""
    numbers = {"accuracy": difference(before, after)}
    biases = [_bias(answers, scores) for scores in (before, after)] if answers.paired else [None]
    if biases[0] is not None and biases[-1] is not None:
        first, last = biases[0], biases[-1]
        error = _spread(last.influence - first.influence) or last.least
        numbers["length_bias"] = last.value - first.value, error
    return with_errors(numbers)


def moved(answers: LabelledAnswers, apart: np.ndarray) -> Numbers:
    """Return how much likelier a token of the answers of each side has become, in nats.

    `apart` (n,) is how far the sum of each answer is from its start.
    """
    sides = {"chosen": answers.preferred, "rejected": ~answers.preferred}
    return with_errors(
        {
            name: mean(item_scores(apart[side], answers.prompts[side], answers.tokens[side]))
            for name, side in sides.items()
            if side.any()
        }
    )


# ---------------------------------------------------------------- length


@dataclass(frozen=True)
class _Bias:
    """A difference of two accuracies.

    Attributes:
        influence: what each prompt adds to the error.
        least: the error where the prompts do not differ, which is no certainty.
    """

    value: float
    influence: np.ndarray
    least: float

    @property
    def error(self) -> float:
        return _spread(self.influence) or self.least


def _by_length(answers: LabelledAnswers) -> Mapping[str, np.ndarray]:
    chosen, rejected = answers.tokens[0::2], answers.tokens[1::2]
    return {"where_longer": chosen > rejected, "where_shorter": chosen < rejected}


def _bias(answers: LabelledAnswers, scores: ItemScores) -> _Bias | None:
    """Return the accuracy of pairs whose chosen answer is longer, less that of those whose is
    shorter; None without pairs of both kinds.

    The prompts of both kinds may be the same ones, so the error is that of the difference of two
    ratios (linearised as in `ratio`), and not of two independent numbers.
    """
    clusters, of = scores.units, _by_length(answers)
    count = int(clusters.max(initial=-1)) + 1
    value, influence, least = 0.0, np.zeros(count), 0.0
    for where, sign in zip(of.values(), (1, -1)):
        if not where.any():
            return None
        right = np.bincount(clusters[where], scores.scores[where], count)
        pairs = np.bincount(clusters[where], minlength=count)
        share = right.sum() / pairs.sum()
        value += sign * share
        influence += sign * (right - share * pairs) / pairs.sum()
        least += share_sem(0, int(np.count_nonzero(pairs))) ** 2
    return _Bias(float(value), influence, math.sqrt(least))


def _spread(influence: np.ndarray) -> float:
    """Return the standard error of a sum of what independent prompts add; NaN for a single one."""
    n = len(influence)
    return math.sqrt(n / (n - 1) * float((influence**2).sum())) if n > 1 else math.nan
