"""What training changed, as rows and sentences, for the model card and the report.

The results hold the model that the run started from (`base`), the trained model, and the `change`
from the one to the other, with the standard error of paired documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pipeline.job import Job
from pipeline.report.result_tables import value_with_error

HEADER = ("", "before", "after", "difference")
# Standard errors from which on a difference is not put down to chance.
ERRORS_OF_A_DIFFERENCE = 2.0

# (row's title, where in the results, measure)
ROWS = (
    ("loss of responses in held-out conversations (nats per token)", None, "response_loss"),
    ("held-out text (bits per byte)", None, "bits_per_byte"),
    ("other text (bits per byte)", "text", "bits_per_byte"),
)


def before_after_rows(job: Job, results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, difference ± error) of all that was measured before training."""
    sides = [results.get(name) or {} for name in ("base", job.train_stages[-1], "change")]
    rows = []
    for title, where, measure in ROWS:
        before, after, change = (side.get(where) or {} if where else side for side in sides)
        if measure in before:
            shown = [value_with_error(side, measure) for side in (before, after, change)]
            rows.append((title, shown[0], shown[1], _signed(shown[2])))
    return rows


def what_it_forgot(job: Job, results: Mapping[str, Any], *, code: str = "{}") -> str:
    """Return in a sentence or two what the other text is, and what the model has forgotten of it.

    `code` is the format of names and hashes.
    """
    sha256 = (results.get("compared_text") or {}).get("sha256")
    before = ((results.get("base") or {}).get("text") or {}).get("bits_per_byte")
    change = (results.get("change") or {}).get("text") or {}
    if sha256 is None or not before:
        return ""
    return f"The other text is {_which(job, sha256, code)}. {_meaning(before, change)}"


def start_in_words(base: Mapping[str, Any]) -> str:
    """Return what was measured before training, in a line."""
    words = []
    for title, where, measure in ROWS:
        result = base.get(where) or {} if where else base
        if measure in result:
            words.append(f"{title}: {value_with_error(result, measure)}")
    return "; ".join(words)


def _which(job: Job, sha256: str, code: str) -> str:
    hashed = f"sha256 {code.format(sha256)}"
    if job.evaluate.text is None:
        return f"a sample that comes with Pion ({hashed})"
    return f"{code.format(PurePath(job.evaluate.text).name)} ({hashed})"


def _meaning(before: float, change: Mapping[str, Any]) -> str:
    more, error = change.get("bits_per_byte"), change.get("bits_per_byte_sem")
    if more is None or not math.isfinite(more):
        return "What the model has forgotten of it could not be measured."
    share = f"{abs(100 * more / before):.1f} %"
    if error is None or not math.isfinite(error):
        return (
            f"The trained model needs {share} {'more' if more > 0 else 'fewer'} bits for it. It is "
            "too short to tell this from chance."
        )
    if abs(more) <= ERRORS_OF_A_DIFFERENCE * error:
        return (
            f"The difference is within {ERRORS_OF_A_DIFFERENCE:g} standard errors, so this text "
            "does not show that training made the model forget."
        )
    if more > 0:
        return f"Training made the model forget: it needs {share} more bits for the same text."
    return f"The model forgot nothing of it: it needs {share} fewer bits for the same text."


def _signed(text: str) -> str:
    """Return a difference with its sign; a minus sign is as wide as a plus sign."""
    return (
        text.replace("-", "−", 1) if text.startswith("-") else text if text == "–" else f"+{text}"
    )
