"""Results of lm-evaluation-harness as rows of text: the scores, and how the model was asked.

The metrics are lm-eval's own, so each may be anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.console.formats import counted, measured, printable
from pipeline.report.blocks import Block, Table, share_with_error

# The key of a task's result with how the model was asked. All numbers next to it are metrics.
# Results of 0.1.0 don't have it.
ASKED = "asked"
ASKED_COLUMNS = (
    *("task", "version", "stop texts", "questions"),
    *("longest answer", "cut off", "cropped"),
)


def lm_eval_blocks(results: Mapping[str, Any], *, code: str) -> list[Block]:
    """Return what lm-evaluation-harness measured, and how it asked."""
    blocks: list[Block] = []
    if lm_eval := lm_eval_rows(results):
        blocks += ["lm-evaluation-harness:", Table(("task", "metric", "value"), lm_eval, 2)]
    if forms := asked_rows(results, code=code):
        blocks += [asked_in_words(results), Table(ASKED_COLUMNS, forms, 3)]
    return blocks


def lm_eval_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (task, metric, value) of lm-evaluation-harness; for a skipped task, the reason."""
    rows = []
    for task, metrics in results.get("lm_eval", {}).items():
        if "skipped" in metrics:
            rows.append((task, "skipped", metrics["skipped"]))
            continue
        shown = f"{task}{_form(metrics.get(ASKED, {}))}"
        for name, value in metrics.items():
            metric, comma, filter_name = name.partition(",")
            # The error of `acc,none` is `acc_stderr,none`.
            error = metrics.get(f"{metric}_stderr{comma}{filter_name}")
            if isinstance(value, int | float) and "_stderr" not in name and name != ASKED:
                known = error if isinstance(error, int | float) else None
                rows.append((shown, name.removesuffix(",none"), measured(value, known)))
    return rows


def asked_rows(results: Mapping[str, Any], *, code: str = "{}") -> list[tuple[str, ...]]:
    """Return how the model was asked each task, as ASKED_COLUMNS; `code` formats stop texts."""
    return [
        (
            task,
            _text(asked.get("version")),
            _stops(asked, code),
            _questions(asked),
            "–" if "max_gen_toks" not in asked else f"{asked['max_gen_toks']:,}",
            share_with_error(asked.get("cut_off"), None),
            share_with_error(asked.get("cropped"), None),
        )
        for task, asked in _asked(results).items()
    ]


def asked_in_words(results: Mapping[str, Any]) -> str:
    """Return in sentences what the rows of `asked_rows` mean."""
    versions, seeds = (
        ", ".join(sorted({_text(asked.get(name)) for asked in _asked(results).values()}))
        for name in ("lm_eval", "fewshot_seed")
    )
    return (
        f"lm-evaluation-harness {versions} asked as follows. It drew the examples with seed "
        f"{seeds}. Cut off are answers that reached the longest length, in tokens, without an end; "
        "cropped are prompts whose beginning did not fit into the model's context."
    )


def _asked(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return how the model was asked, by task."""
    tasks = results.get("lm_eval", {})
    return {task: metrics[ASKED] for task, metrics in tasks.items() if metrics.get(ASKED)}


def _form(asked: Mapping[str, Any]) -> str:
    """Return ` (chat, 5 turns)` or ` (text, 5 shots)`; empty if the form is not known."""
    form, shots = asked.get("form"), asked.get("shots")
    if form is None or not shots:
        return "" if form is None else f" ({form})"
    return f" ({form}, {counted(shots, 'turn' if form == 'chat' else 'shot')})"


def _questions(asked: Mapping[str, Any]) -> str:
    if "questions" not in asked or "of" not in asked:
        return "–"
    questions, of = asked["questions"], asked["of"]
    return f"{questions:,}" if questions == of else f"{questions:,} of {of:,}"


def _stops(asked: Mapping[str, Any], code: str) -> str:
    quoted = (json.dumps(printable(text), ensure_ascii=False) for text in asked.get("until", []))
    return ", ".join(code.format(text.replace("`", "'")) for text in quoted) or "–"


def _text(value: str | float | None) -> str:
    return "–" if value is None else printable(str(value))
