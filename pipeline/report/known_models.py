"""Results of other people's models, drawn next to a run's own: facts with their sources.

A number of one benchmark differs by tool, by its examples and by its form. So each names the tool
that measured it, and models of different tools are never in one mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.console.formats import measured
from pipeline.report.blocks import Bar, Bars

FACTS = Path(__file__).with_name("known_models.json")


@cache
def _facts() -> dict[str, Any]:
    return dict(json.loads(FACTS.read_text(encoding="utf-8")))


def core_bars(own: Mapping[str, tuple[float, str]]) -> Bars:
    """Return the known models' CORE (nanochat's rules, baselines v1) and a run's own by name: each
    a value and its words."""
    known = {one["model"]: (one["value"], f"{one['value']:.4f}") for one in _facts()["core"]}
    return _bars(known | dict(own))


def task_bars(task: str, own: Mapping[str, tuple[float, str]]) -> Bars | None:
    """Return the known models' results of a task of lm-eval and a run's own; None if there is no
    known one."""
    known = {
        f"{one['model']} ({one['how']})": (one["value"], f"{one['value']:.3f}")
        for one in _facts()["lm_eval"].get(task, [])
    }
    return _bars(known | dict(own)) if known else None


def known_tasks(results: Mapping[str, Any]) -> list[str | Bars]:
    """Return, for the tasks of lm-eval that known models have done, a sentence and a drawing."""
    blocks: list[str | Bars] = []
    for task, metrics in (results.get("lm_eval") or {}).items():
        value, error = metrics.get("acc"), metrics.get("acc_stderr")
        if not isinstance(value, int | float):
            continue
        own = measured(value, error if isinstance(error, int | float) else None)
        shots = (metrics.get("asked") or {}).get("shots")
        how = f"lm-eval, {shots} shots, acc" if isinstance(shots, int) else "lm-eval, acc"
        if bars := task_bars(task, {f"this run ({how})": (value, own)}):
            blocks += [f"{task} next to known models, each by the tool and form named:", bars]
            blocks.append(f"Their numbers are from: {sources_in_words('lm_eval', task)}.")
    return blocks


def sources_in_words(facts: str, task: str | None = None) -> str:
    """Return where the numbers of known models are from."""
    found = _facts()[facts] if task is None else _facts()[facts].get(task, [])
    return "; ".join(dict.fromkeys(f"{one['source']}" for one in found))


def _bars(found: Mapping[str, tuple[float, str]]) -> Bars:
    bars = [Bar(name, words, value) for name, (value, words) in found.items()]
    return Bars("model", sorted(bars, key=lambda bar: bar.value))
