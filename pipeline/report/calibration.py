"""How far a model's probabilities can be trusted, as rows of text and a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.report.blocks import (
    Block,
    Table,
    percent_with_error,
    share_with_error,
    value_with_error,
)
from pipeline.report.results import TRAINED

CALIBRATION = (
    "How far the probability of the most likely token can be trusted. ECE is the mean distance "
    "between this probability and how often the token is right, in 15 groups of tokens. Of ECE and "
    "of the Brier score, lower is better:"
)
CALIBRATION_COLUMNS = ("model", "text", "mean probability", "right", "ECE", "Brier score")
# With fewer tokens, a group says too little.
FEWEST_OF_A_GROUP = 100
# The model that a run started from.
BEFORE = "before training"


def calibration_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Return a table of all measured models, and a sentence about the last one."""
    rows = calibration_rows(results)
    table = Table(CALIBRATION_COLUMNS, rows, 2)
    return [CALIBRATION, table, calibration_in_words(results)] if rows else []


def calibration_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return (model, text, mean probability, right, ECE, Brier score) of each measured model."""
    return [
        (
            title,
            text,
            *(percent_with_error(found, name) for name in ("confidence", "accuracy", "ece")),
            value_with_error(found, "brier"),
        )
        for title, text, found in _calibrated(results)
    ]


def calibration_in_words(results: Mapping[str, Any]) -> str:
    """Return in a sentence how far the last model's probabilities can be trusted; empty if unknown.

    The example is of tokens with a probability of about 70 %, if there are enough of them.
    """
    last = next(_calibrated(results), None)
    if last is None:
        return ""
    title, text, measured = last
    called = f"model {title}" if title == BEFORE else f"{title} model"
    example = measured["near_70"]
    few = example is None or example["tokens"] < FEWEST_OF_A_GROUP
    confidence, right = (
        percent_with_error(measured if few else example, name)
        for name in ("confidence", "accuracy")
    )
    if few:
        return (
            f"On {text}, the most likely token of the {called} has a probability of "
            f"{confidence} on average, and is right in {right} of the cases."
        )
    return (
        f"Where the {called} gives a token of {text} about 70 % (on average {confidence}), "
        f"this token is right in {right} of the cases ({example['tokens']:,} tokens)."
    )


def calibration_in_brief(found: Mapping[str, Any]) -> str:
    """Return `31.2 % sure, 30.5 % right (ECE 1.3 %)`."""
    sure, right, ece = (
        share_with_error(found[name], None) for name in ("confidence", "accuracy", "ece")
    )
    return f"{sure} sure, {right} right (ECE {ece})"


def _calibrated(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (model, text, what was measured) of each model and text, those of the last model first.
    Results of before 0.2.0 have nothing."""
    for key, title in {**TRAINED, "base": BEFORE}.items():
        result = results.get(key) or {}
        for text, measured in (("held-out text", result), ("other text", result.get("text") or {})):
            if found := measured.get("calibration"):
                yield title, text, found
