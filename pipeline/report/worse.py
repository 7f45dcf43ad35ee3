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

Result = Mapping[str, Any]

# Standard errors from which on a difference is not put down to chance.
ERRORS_OF_A_DIFFERENCE = 2.0
# What each stage learns: its name in the results, what it is, and the sign of what is worse.
LEARNED = {
    "pretrain": ("bits_per_byte", "bits per byte of held-out text", 1),
    "sft": ("response_loss", "nats per token of held-out answers", 1),
    "prefer": ("accuracy", "of the held-out pairs right", -1),
    "reinforce": ("reward", "is the mean reward of held-out prompts", -1),
}


def made_worse(results: Result) -> list[str]:
    """Return a sentence for each stage whose model is worse than the one that the stage began with:
    by more than two standard errors, or because it gives no finite numbers any more."""
    sentences = []
    trained = [stage for stage in TRAINING if results.get(stage)]
    for stage in trained:
        name, what, sign = LEARNED[stage]
        sides = _sides(results, stage, last=stage == trained[-1])
        before, after, change = map(numbers_of, sides)
        lost = math.isfinite(before.get(name, math.nan)) and math.isnan(after.get(name, 0.0))
        error = change.get(f"{name}_sem", math.nan)
        if lost or sign * change.get(name, math.nan) > ERRORS_OF_A_DIFFERENCE * error:
            shown = " → ".join(_shown(side, name) for side in (before, after))
            sentences.append(f"{stage} made the model worse: {shown} {what}")
    return sentences


def _shown(numbers: Mapping[str, float], name: str) -> str:
    value = numbers.get(name, math.nan)
    return "–" if math.isnan(value) else measured(value, numbers.get(f"{name}_sem"))


def _sides(results: Result, stage: str, *, last: bool) -> list[Result]:
    """Return what a stage learns before it and after it, and the change; {} if not measured."""
    after: Result = results[stage]
    if compared := after.get("rewards"):
        return [compared[side] for side in SIDES]
    if compared := after.get("preferences"):
        by = "normalized" if compared.get("of_means") else "raw"
        return [compared.get(side, {}).get(by, {}) for side in SIDES]
    start = "untrained" if stage == "pretrain" else "pretrain"
    start = start if results.get(start) else "base"
    before: Result = results.get(start) or {}
    if start == "base" and last:  # the same documents are paired
        return [before, after, results.get("change") or {}]
    name = LEARNED[stage][0]
    old, new = numbers_of(before), numbers_of(after)
    if name not in old or name not in new:
        return [before, after, {}]
    errors = (side.get(f"{name}_sem", math.nan) for side in (old, new))
    return [before, after, {name: new[name] - old[name], f"{name}_sem": math.hypot(*errors)}]
