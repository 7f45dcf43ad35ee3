"""What a ladder predicted of a run before it pretrained, next to what the run has reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.console.formats import measured, printable
from pipeline.report.blocks import value_with_error
from pipeline.report.history import Row, RunHistory

# So many settings are named.
SHOWN = 4


def prediction_in_words(event: Mapping[str, Any]) -> str:
    """Return a prediction: `2.270 bits per byte (90 %: 2.210 to 2.330) by ladder demo`.

    `event` has the fields of `pipeline.run.prediction.RunPrediction`. Beyond the range that the
    ladder is trusted for, the words say so.
    """
    middle, low, high = (event[name] for name in ("bits_per_byte", "low", "high"))
    by = f"by ladder {event['ladder']}"
    if middle is None or low is None or high is None:
        return (
            f"nothing {by}: the run has {event['times']:,.0f} times the FLOPs of its largest run, "
            f"and it is trusted up to {event['trusted_times']:,.0f} times"
        )
    interval = f"90 %: {measured(low)} to {measured(high)}"
    return f"{measured(middle)} bits per byte ({interval}) {by}{_other_text(event)}"


def against_result(history: RunHistory, results: Mapping[str, Any]) -> str:
    """Return what was predicted of the run and what it has reached, without a stop at the end.

    Empty if the job names no ladder, or before the result. If several starts predicted, the first
    prediction for the settings that were trained counts.
    """
    job = history.known_job
    reached = value_with_error(results.get("pretrain") or {}, "bits_per_byte")
    if job is None or job.evaluate.ladder is None or reached == "–":
        return ""
    event = _prediction(history, job.evaluate.ladder)
    if event is None:
        said = f"nothing by ladder {job.evaluate.ladder}: it was named after pretraining had begun"
    else:
        said = prediction_in_words(event)
    return f"predicted {said}; reached {reached}"


def result_sentence(history: RunHistory, results: Mapping[str, Any]) -> str:
    """Return `against_result` as a sentence for the card and the page."""
    words = against_result(history, results)
    return f"Pretraining: {words}." if words else ""


def _prediction(history: RunHistory, ladder: str) -> Row | None:
    record = history.head.stages.get("pretrain")
    found = (
        event
        for event in history.of_kind("predicted")
        if record is not None and (event["ladder"], event["digest"]) == (ladder, record.digest)
    )
    return min(found, key=lambda event: float(event["at"]), default=None)


def _other_text(event: Mapping[str, Any]) -> str:
    """Return that the ladder is of other text, if it is."""
    other = [printable(path) for path in event["other"]]
    if not other:
        return ""
    more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    return f", whose runs had other settings of the text ({', '.join(other[:SHOWN])}{more})"
