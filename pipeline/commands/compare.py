"""`pion status A B --compare`: runs side by side: settings that differ, data, loss, what was
measured of the final models by question and document, and dollars."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pion.errors import BadInput
from pipeline.console.formats import amount, duration, measured, money, number_or_dash, printable
from pipeline.console.masking import masked
from pipeline.console.print_and_ask import show_table
from pipeline.report.history import RunHistory, differing
from pipeline.report.paired import Compared, Measure, compare, read_measures
from pipeline.report.reading import read_history
from pipeline.state.find_run import read_run
from pipeline.state.record_json import finite_json
from pipeline.state.run_state import RunState

UNKNOWN = "–"


def show_comparison(runs: Sequence[str], *, as_json: bool) -> None:
    """Print runs side by side: what they trained on, their losses, costs and differing settings.

    Reads only their stores. Raises BadInput for fewer than two runs, and if one does not exist.
    """
    if len(runs) < 2:
        raise BadInput(
            "--compare needs two or more runs: pion status A B --compare. Nothing was read."
        )
    states = [read_run(run)[0] for run in runs]  # a missing run is found before long reads
    found = [read_history(state) for state in states]
    settings = differing([history.known_job for history in found])
    measures = [_measures(state, history) for state, history in zip(states, found)]
    changes = [compare(measures[0], other) for other in measures[1:]]
    if as_json:
        print(finite_json(_as_json(found, settings, changes), indent=1))
    else:
        show_table(_table(found, settings, changes))


def _measures(state: RunState, run: RunHistory) -> dict[str, Measure]:
    """Return what was measured of a run's final model; {} if its job can't be read."""
    job = run.known_job
    return {} if job is None else read_measures(state, run.head, job.train_stages[-1])


def _as_json(
    runs: Sequence[RunHistory],
    settings: dict[str, list[Any]] | None,
    changes: Sequence[Sequence[Compared]],
) -> dict[str, Any]:
    """`changes` compares the first run with each of the others."""
    return {
        "runs": [
            {
                "run": run.name,
                "store": run.url.rpartition("/")[0],
                "data": _data(run),
                "losses": _losses(run),
                "hours": run.costs.hours,
                "dollars": run.costs.dollars,
            }
            for run in runs
        ],
        "settings": settings,
        "measured": [
            {
                "run": run.name,
                "less": runs[0].name,
                "measures": [{**dataclasses.asdict(row), "z": row.z} for row in rows],
            }
            for run, rows in zip(runs[1:], changes)
        ],
    }


def _table(
    runs: Sequence[RunHistory],
    settings: dict[str, list[Any]] | None,
    changes: Sequence[Sequence[Compared]],
) -> Table:
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [run.url for run in runs]
    table = Table(box=None, pad_edge=False)
    for name in ("", *names):
        table.add_column(Text(printable(name)), overflow="fold")
    hours = [duration(3600 * run.costs.hours) for run in runs]
    sections: dict[str, dict[str, list[str]]] = {
        "settings that differ": _setting_rows(runs, settings),
        "data": _data_rows(runs),
        "loss": _loss_rows(runs),
        f"final model; in parentheses less {names[0]}": _measured_rows(changes),
        "cost": {"time": hours, "dollars": [_dollars(run) for run in runs]},
    }
    for title, rows in sections.items():
        table.add_section()
        table.add_row(Text(title, "bold"))
        for name, values in rows.items():
            table.add_row(*(Text(printable(masked(word))) for word in (name, *values)))
    return table


def _setting_rows(
    runs: Sequence[RunHistory], settings: dict[str, list[Any]] | None
) -> dict[str, list[str]]:
    if settings is None:
        return {"not known: the job of a run can't be read": []}
    known = [run.known_job is not None for run in runs]
    return {
        path: [_value(v) if k else UNKNOWN for v, k in zip(values, known)]
        for path, values in settings.items()
    } or {"none": []}


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def _data(run: RunHistory) -> dict[str, Any]:
    """Return the digest of `prepare`, and the tokens to train on by stage; {} if not prepared."""
    record = run.head.stages.get("prepare")
    if record is None:
        return {}
    tokens = {
        part: report["train_tokens"]
        for part, report in record.result.items()
        if isinstance(report, dict) and isinstance(report.get("train_tokens"), int)
    }
    return {"digest": record.digest, "train_tokens": tokens}


def _data_rows(runs: Sequence[RunHistory]) -> dict[str, list[str]]:
    data = [_data(run) for run in runs]
    rows = {"digest": [one.get("digest", "not prepared") for one in data]}
    parts = dict.fromkeys(part for one in data for part in one.get("train_tokens", {}))
    for part in parts:
        counts = [one.get("train_tokens", {}).get(part) for one in data]
        rows[f"{part} tokens"] = [UNKNOWN if n is None else amount(n) for n in counts]
    return rows


def _losses(run: RunHistory) -> dict[str, dict[str, Any]]:
    """Return each stage's newest loss and held-out loss, each with its step."""
    found: dict[str, dict[str, Any]] = {}
    for stage, rows in run.metrics.items():
        for kind in ("loss", "held_out_loss"):
            row = next((row for row in reversed(rows) if row.get(kind) is not None), None)
            if row is not None:
                found.setdefault(stage, {})[kind] = {"value": row[kind], "step": row["step"]}
    return found


def _loss_rows(runs: Sequence[RunHistory]) -> dict[str, list[str]]:
    losses = [_losses(run) for run in runs]
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


def _measured_rows(changes: Sequence[Sequence[Compared]]) -> dict[str, list[str]]:
    """Return the values of each measure, with the differences from the first run."""
    by_name = [{row.name: row for row in rows} for rows in changes]
    cells: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for one in by_name for name in one):
        rows = [one.get(name) for one in by_name]
        first = next(row.values[0] for row in rows if row is not None)
        cells[name] = [
            number_or_dash(first, 4),
            *("" if row is None else _change(row) for row in rows),
        ]
    return cells or {"not evaluated, or by a Pion that kept no single answers": []}


def _change(row: Compared) -> str:
    value = number_or_dash(row.values[1], 4)
    if row.change is None:
        return f"{value} (not compared: {row.why_not})"
    signed = f"{'+' if row.change >= 0 else ''}{measured(row.change, row.sem, 4)}"
    z = "" if row.z is None else f", z = {row.z:+.1f}"
    verdict = {True: ", more than chance", False: ", within chance", None: ""}[row.real]
    return f"{value} ({signed}{z}{verdict})".replace("-", "−")


def _dollars(run: RunHistory) -> str:
    costs = run.costs
    if costs.dollars is None:
        return "no price is known"
    missing = duration(3600 * costs.unpriced_hours) if costs.unpriced_hours else None
    return money(costs.dollars) + (f", {missing} without a price" if missing else "")
