"""Results of lm-evaluation-harness as rows of text: the scores, and how the model was asked.

All values are from the record of a run: each may be anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.console.formats import counted, measured, printable
from pipeline.report.blocks import Block, Table

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
    for task, metrics in (results.get("lm_eval") or {}).items():
        if "skipped" in metrics:
            rows.append((task, "skipped", str(metrics["skipped"])))
            continue
        shown = f"{task}{_form(_asked(metrics))}"
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
            _stops(asked.get("until"), code),
            _questions(asked),
            _tokens(asked.get("max_gen_toks")),
            _share(asked.get("cut_off")),
            _share(asked.get("cropped")),
        )
        for task, asked in _tasks(results)
    ]


def asked_in_words(results: Mapping[str, Any]) -> str:
    """Return in sentences what the rows of `asked_rows` mean."""
    versions = {_text(asked.get("lm_eval")) for _, asked in _tasks(results)}
    seeds = {_text(asked.get("fewshot_seed")) for _, asked in _tasks(results)}
    return (
        f"lm-evaluation-harness {', '.join(sorted(versions))} asked as follows. It drew the "
        f"examples with seed {', '.join(sorted(seeds))}. Cut off are answers that reached the "
        "longest length, in tokens, without an end; cropped are prompts whose beginning did not "
        "fit into the model's context."
    )


def _tasks(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for task, metrics in (results.get("lm_eval") or {}).items():
        if asked := _asked(metrics):
            yield task, asked


def _asked(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    asked = metrics.get(ASKED)
    return asked if isinstance(asked, dict) else {}


def _form(asked: Mapping[str, Any]) -> str:
    """Return ` (chat, 5 turns)` or ` (text, 5 shots)`; empty if the form is not known."""
    form, shots = asked.get("form"), _count(asked.get("shots"))
    if form not in ("chat", "text"):
        return ""
    if not shots:
        return f" ({form})"
    return f" ({form}, {counted(shots, 'turn' if form == 'chat' else 'shot')})"


def _questions(asked: Mapping[str, Any]) -> str:
    questions, of = _count(asked.get("questions")), _count(asked.get("of"))
    if questions is None or of is None:
        return "–"
    return f"{questions:,}" if questions == of else f"{questions:,} of {of:,}"


def _stops(stops: Any, code: str) -> str:
    texts = stops if isinstance(stops, list) else []
    quoted = (json.dumps(printable(str(text)), ensure_ascii=False) for text in texts)
    return ", ".join(code.format(text.replace("`", "'")) for text in quoted) or "–"


def _tokens(value: Any) -> str:
    count = _count(value)
    return "–" if count is None else f"{count:,}"


def _share(share: Any) -> str:
    known = isinstance(share, int | float) and math.isfinite(share)
    return f"{100 * share:.1f} %" if known else "–"


def _text(value: Any) -> str:
    return printable(str(value)) if isinstance(value, str | int) else "–"


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
