"""`pion status A B --compare`: runs side by side: settings that differ, data, loss and dollars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pion.errors import BadInput
from pipeline.console.formats import amount, duration, printable
from pipeline.console.masking import masked
from pipeline.console.out import show_table
from pipeline.report.page_data import Look
from pipeline.report.reading import Reading
from pipeline.report.settings import differing
from pipeline.state.find_run import no_such_run, read_run

UNKNOWN = "–"


def show_comparison(runs: Sequence[str], *, as_json: bool) -> int:
    """Print runs side by side: what they trained on, their losses, costs and differing settings.

    Reads only their stores. Raises BadInput for fewer than two runs, and if one does not exist.
    """
    if len(runs) < 2:
        raise BadInput(
            "--compare needs two or more runs: pion status A B --compare. Nothing was read."
        )
    states = [read_run(run)[0] for run in runs]  # a missing run is found before long reads
    looks = []
    for state in states:
        look = Reading(state).read()
        if look is None:
            raise BadInput(no_such_run(state))
        looks.append(look)
    settings = differing([look.settings for look in looks])
    if as_json:
        print(json.dumps(_as_json(looks, settings), indent=1))
        return 0
    show_table(_table(looks, settings))
    return 0


def _as_json(looks: Sequence[Look], settings: dict[str, list[Any]] | None) -> dict[str, Any]:
    return {
        "runs": [
            {
                "run": look.state.name,
                "store": look.state.store.url,
                "data": _data(look),
                "losses": _losses(look),
                "hours": look.costs.hours,
                "dollars": look.costs.dollars,
            }
            for look in looks
        ],
        "settings": settings,
    }


def _table(looks: Sequence[Look], settings: dict[str, list[Any]] | None) -> Table:
    names = [look.state.name for look in looks]
    if len(set(names)) < len(names):
        names = [look.state.url for look in looks]
    table = Table(box=None, pad_edge=False)
    for name in ("", *names):
        table.add_column(Text(printable(name)), overflow="fold")

    def add(name: str, values: Sequence[str]) -> None:
        table.add_row(*(Text(printable(masked(word))) for word in (name, *values)))

    def title(name: str) -> None:
        table.add_section()
        table.add_row(Text(name, "bold"))

    title("settings that differ")
    if settings is None:
        add("not known: the job of a run can't be read", [])
    elif not settings:
        add("none", [])
    else:
        for path, values in settings.items():
            known = [bool(look.settings.by_path) for look in looks]
            add(path, [_value(v) if k else UNKNOWN for v, k in zip(values, known)])
    for name, cells in (("data", _data_rows(looks)), ("loss", _loss_rows(looks))):
        title(name)
        for row, values in cells.items():
            add(row, values)
    title("cost")
    add("time", [duration(3600 * look.costs.hours) for look in looks])
    add("dollars", [_dollars(look) for look in looks])
    return table


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def _data(look: Look) -> dict[str, Any]:
    """Return the digest of `prepare`, and the tokens to train on by stage; {} if not prepared."""
    record = look.head.stages.get("prepare")
    if record is None:
        return {}
    tokens = {
        part: report["train_tokens"]
        for part, report in record.result.items()
        if isinstance(report, dict) and isinstance(report.get("train_tokens"), int)
    }
    return {"digest": record.digest, "train_tokens": tokens}


def _data_rows(looks: Sequence[Look]) -> dict[str, list[str]]:
    data = [_data(look) for look in looks]
    rows = {"digest": [one.get("digest", "not prepared") for one in data]}
    parts = dict.fromkeys(part for one in data for part in one.get("train_tokens", {}))
    for part in parts:
        counts = [one.get("train_tokens", {}).get(part) for one in data]
        rows[f"{part} tokens"] = [UNKNOWN if n is None else amount(n) for n in counts]
    return rows


def _losses(look: Look) -> dict[str, dict[str, Any]]:
    """Return each stage's newest loss and held-out loss, each with its step."""
    found: dict[str, dict[str, Any]] = {}
    for stage, rows in look.kept.items():
        for kind in ("loss", "held_out_loss"):
            row = next((row for row in reversed(rows) if row.get(kind) is not None), None)
            if row is not None:
                found.setdefault(stage, {})[kind] = {"value": row[kind], "step": row["step"]}
    return found


def _loss_rows(looks: Sequence[Look]) -> dict[str, list[str]]:
    losses = [_losses(look) for look in looks]
    rows = {}
    for stage in dict.fromkeys(stage for one in losses for stage in one):
        for kind, words in (("loss", "training"), ("held_out_loss", "held out")):
            found = [one.get(stage, {}).get(kind) for one in losses]
            if any(found):
                rows[f"{stage}, {words}"] = [
                    UNKNOWN if f is None else f"{f['value']:.4f} at step {f['step']:,}"
                    for f in found
                ]
    return rows or {"no step was trained": []}


def _dollars(look: Look) -> str:
    costs = look.costs
    if costs.dollars is None:
        return "no price is known"
    missing = duration(3600 * costs.unpriced_hours) if costs.unpriced_hours else None
    return f"${costs.dollars:.2f}" + (f", {missing} without a price" if missing else "")
