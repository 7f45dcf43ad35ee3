"""The results of a model on held-out preferences, from what two models give for the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pion.evaluation.agreement import LabelledAnswers, agreement, changed, moved
from pion.evaluation.item_scores import ItemScores, mean

Result = dict[str, Any]


@dataclass(frozen=True)
class Sums:
    """What the models before and after training give for each answer, in nats, fp64 (n,)."""

    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Found:
    """The results, and the scores of single pairs or answers, by name."""

    result: Result
    items: dict[str, ItemScores]


def agreement_results(
    labels: LabelledAnswers, sums: Sums, *, of_means: bool, with_reference: bool
) -> Found:
    """Return how often the models agree with the labels.

    Of pairs: by the sums (`raw`), by the means over tokens (`normalized`), and after training also
    by what the loss compares (`margin`): how far the answers are from the reference, if there is
    one, as means or as sums. Of single answers, only the last one has a meaning.
    """
    apart = sums.after - sums.before
    margins = apart if with_reference else sums.after
    margin = labels.scored(margins / labels.tokens if of_means else margins)
    result: Result = {
        "kind": "pairs" if labels.paired else "labels",
        "items": labels.items,
        "prompts": len(np.unique(labels.prompts)),
        "of_means": of_means,
        "with_reference": with_reference,
        "before": {},
        "after": {"margin": agreement(labels, margin)},
        "change": {},
        "moved": moved(labels, apart),
    }
    if not labels.paired:
        return Found(result | {"desired": float(labels.preferred.mean())}, {"accuracy": margin})
    items = {"accuracy": margin}
    for name, by in (("raw", np.ones(len(labels.tokens))), ("normalized", labels.tokens)):
        before, after = (labels.scored(side / by) for side in (sums.before, sums.after))
        result["before"][name] = agreement(labels, before)
        result["after"][name] = agreement(labels, after)
        result["change"][name] = changed(labels, before, after)
        items[f"{name}_accuracy"] = after
    return Found(result | {"rules": _rules(labels)}, items)


def _rules(labels: LabelledAnswers) -> Result:
    """Return how right it is to take the longer answer, and to take the shorter one."""
    longer, error = mean(labels.longer_wins())
    return {
        "longer_wins": longer,
        "longer_wins_sem": error,
        "shorter_wins": 1 - longer,
        "shorter_wins_sem": error,
        "longer": int((labels.tokens[0::2] > labels.tokens[1::2]).sum()),
        "shorter": int((labels.tokens[0::2] < labels.tokens[1::2]).sum()),
    }
