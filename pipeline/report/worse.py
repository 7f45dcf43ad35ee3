"""Which training stages have made their model worse, by what each learns and on held-out data.

Other losses may rise: a model that learns to answer forgets some of its text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.console.formats import measured
from pipeline.job.stages import TRAINING
from pipeline.report.results import SIDES, numbers_of

# Standard errors from which on a difference is not put down to chance.
ERRORS_OF_A_DIFFERENCE = 2.0
# What each stage learns: its name in the results, what it is, and the sign of what is worse.
LEARNED = {
    "pretrain": ("bits_per_byte", "bits per byte of held-out text", 1),
    "sft": ("response_loss", "nats per token of held-out answers", 1),
    "prefer": ("accuracy", "of the held-out pairs right", -1),
    "reinforce": ("reward", "is the mean reward of held-out prompts", -1),
}


def made_worse(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each stage whose model is worse than the one that the stage began with:
    by more than two standard errors, or because it gives no finite numbers any more."""
    numbers = numbers_of(results)
    trained = [stage for stage in TRAINING if results.get(stage)]
    sentences = []
    for stage in trained:
        name, measure_words, sign = LEARNED[stage]
        places = _sides(results, stage, last=stage == trained[-1])
        before, after, change = (f"{path}.{name}" for path in places)
        if before not in numbers or after not in numbers:
            continue
        more, error = (numbers.get(change + end, math.nan) for end in ("", "_sem"))
        if change not in numbers:  # other documents, or another model in between
            more = numbers[after] - numbers[before]
            error = math.hypot(*(numbers.get(f"{n}_sem", math.nan) for n in (before, after)))
        lost = math.isfinite(numbers[before]) and math.isnan(numbers[after])
        if lost or sign * more > ERRORS_OF_A_DIFFERENCE * error:
            shown = " → ".join(_shown(numbers, side) for side in (before, after))
            sentences.append(f"{stage} made the model worse: {shown} {measure_words}")
    return sentences


def _shown(numbers: Mapping[str, float], name: str) -> str:
    value = numbers[name]
    return "–" if math.isnan(value) else measured(value, numbers.get(f"{name}_sem"))


def _sides(results: Mapping[str, Any], stage: str, *, last: bool) -> list[str]:
    """Return where the results have what a stage learns: before it, after it, and the change."""
    if stage == "reinforce":
        return [f"reinforce.rewards.{side}" for side in SIDES]
    if stage == "prefer":
        of_means = results[stage].get("preferences", {}).get("of_means")
        return [
            f"prefer.preferences.{side}.{'normalized' if of_means else 'raw'}" for side in SIDES
        ]
    start = "untrained" if stage == "pretrain" else "pretrain"
    if not results.get(start):
        start = "base"
    # The documents of the start and of the last model are paired.
    return [start, stage, "change" if start == "base" and last else ""]
