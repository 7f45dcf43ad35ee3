"""Which training stages have made their model worse, by what each learns and on held-out data.

Other losses may rise: a model that learns to answer forgets some of its text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.console.formats import measured
from pipeline.job.stages import TRAINING
from pipeline.report.results import SIDES

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
    found = []
    trained = [stage for stage in TRAINING if results.get(stage)]
    for stage in trained:
        name, what, sign = LEARNED[stage]
        before, after, change = _sides(results, stage, last=stage == trained[-1])
        value, error = change.get(name), change.get(f"{name}_sem")
        worse = before.get(name) is not None and after.get(name, 0.0) is None
        if value is not None and error is not None:
            worse = sign * value > ERRORS_OF_A_DIFFERENCE * error
        if worse:
            values = ((side.get(name), side.get(f"{name}_sem")) for side in (before, after))
            shown = ("–" if value is None else measured(value, error) for value, error in values)
            found.append(f"{stage} made the model worse: {' → '.join(shown)} {what}")
    return found


def _sides(results: Result, stage: str, *, last: bool) -> list[Result]:
    """Return what a stage learns before it and after it, and the change; {} if not measured."""
    own: Result = results[stage]
    if compared := own.get("rewards"):
        return [compared[side] for side in SIDES]
    if compared := own.get("preferences"):
        by = "normalized" if compared.get("of_means") else "raw"
        return [compared.get(side, {}).get(by, {}) for side in SIDES]
    start = "untrained" if stage == "pretrain" else "pretrain"
    start = start if results.get(start) else "base"
    before: Result = results.get(start) or {}
    if start == "base" and last:  # the same documents are paired
        return [before, own, results.get("change") or {}]
    name = LEARNED[stage][0]
    found = (side.get(f"{name}{of}") for of in ("", "_sem") for side in (before, own))
    values = [value for value in found if value is not None]
    if len(values) < 4:
        return [before, own, {}]
    return [before, own, {name: values[1] - values[0], f"{name}_sem": math.hypot(*values[2:])}]
