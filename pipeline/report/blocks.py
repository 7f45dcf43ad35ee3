"""What page and card show, one block below the other: sentences and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from pion.config.part_fields import Measure
from pion.evaluation.shares import wilson
from pion.measures import ELSEWHERE
from pipeline.console.formats import beginning, measured


class Table(NamedTuple):
    """A table of texts. Columns from `numbers_from` are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 1


Block = str | Table


# ---------------------------------------------------------------- measures


def written(record: Mapping[str, Any], name: str, measure: Measure) -> str:
    """Return a number of a record as `2.081 ± 0.012`, `63.5 % ± 3.4` or `1,234`; an en dash if it
    was not measured or is not finite."""
    value, error = record.get(name), record.get(f"{name}_sem")
    if measure.form == "count":
        return "–" if value is None else f"{value:,}"
    if measure.form == "share":
        text = share_with_error(value, error)
    else:
        text = number_with_error(value, error, measure.form)
    return signed(text) if measure.difference else text


def measured_table(
    head: Sequence[str],
    records: Iterable[tuple[Sequence[str], Mapping[str, Any]]],
    measures: Mapping[str, Measure],
) -> Table:
    """Return a table with a row for each record: what it is of, under `head`, and its numbers."""
    return Table(
        (*head, *(measure.title for measure in measures.values())),
        [
            (*labels, *(written(record, name, measure) for name, measure in measures.items()))
            for labels, record in records
        ],
        len(head),
    )


def change_table(sides: Sequence[Mapping[str, Any]], measures: Mapping[str, Measure]) -> Table:
    """Return a table with a row for each measure: before and after training, and the difference,
    which are the three `sides`."""
    rows = []
    for name, measure in measures.items():
        before, after, change = (written(side, name, measure) for side in sides)
        rows.append((measure.title, before, after, signed(change)))
    return Table(("", "before", "after", "difference"), rows)


# ---------------------------------------------------------------- values


def number_with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """Return `2.081 ± 0.012`; without a finite error `2.081`; an en dash for None and NaN."""
    return measured(value, error, digits) if is_finite(value) else "–"


def share_with_error(value: float | None, error: float | None) -> str:
    """Return `63.5 % ± 3.4`; without a finite error `63.5 %`; an en dash for None and NaN."""
    if not is_finite(value):
        return "–"
    text = f"{100 * value:.1f} %"
    return f"{text} ± {100 * error:.1f}" if error and is_finite(error) else text


def is_finite(value: float | None) -> TypeGuard[float]:
    """Return whether a number was measured, and is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)


def share_with_interval(record: Mapping[str, Any], name: str, count: str) -> str:
    """Return `100.0 % (95 %: 96.3 to 100.0)` of as many cases as `count` says.

    The interval is Wilson's, which is not empty where all or no cases agree. A result
    without a count keeps its standard error.
    """
    share, n = record.get(name), record.get(count)
    if not n or not is_finite(share):
        return share_with_error(share, record.get(f"{name}_sem"))
    return interval_in_words(share, *wilson(share, n))


def interval_in_words(share: float, low: float, high: float) -> str:
    """Return a share and its interval of 95 %, `100.0 % (95 %: 96.3 to 100.0)`."""
    return f"{100 * share:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"


def signed(text: str) -> str:
    """Return a difference with its sign; a minus sign is as wide as a plus sign."""
    if text == "–":
        return text
    return text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"


# ---------------------------------------------------------------- on the page


def text_block(words: str, *, faint: bool = False) -> dict[str, Any]:
    """Return what the page draws of a sentence; `faint` is for notes."""
    return {"text": words, "faint": faint}


def table_block(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1
) -> dict[str, Any]:
    """Return what the page draws of a table. Columns from `numbers_from` are aligned right."""
    return {
        "header": [name or "what" for name in header],
        "rows": rows,
        "numbers_from": numbers_from,
    }


# ---------------------------------------------------------------- of stages that tune answers

SHOWN = ("prompt", "before", "after")
# What a stage that tunes answers changes elsewhere.
CHANGED = {"text_change": "text", "response_change": "responses in held-out conversations"}
# A text in a table.
MOST_CHARACTERS = 400


def shown_answers(shown: Sequence[Mapping[str, str]]) -> Table:
    """Return a table of prompts, and of the answers before and after training."""
    rows = [
        [beginning(" ".join(answer[name].split()), MOST_CHARACTERS) for name in SHOWN]
        for answer in shown
    ]
    return Table(SHOWN, rows, len(SHOWN))


def changed_elsewhere(tuned: Mapping[str, Any]) -> str:
    """Return in a sentence what the stage has cost elsewhere; empty if it is not known."""
    changes = [
        f"of {title} by {written(tuned, name, ELSEWHERE[name])} {ELSEWHERE[name].title}"
        for name, title in CHANGED.items()
        if tuned.get(name) is not None
    ]
    if not changes:
        return ""
    return f"Its loss on other things changed, too: {' and '.join(changes)} (less is better)."
