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
    histories = [read_history(state) for state in states]
    settings = differing([history.known_job for history in histories])
    measures = [_measures(state, history) for state, history in zip(states, histories)]
    changes = [compare(measures[0], other) for other in measures[1:]]
    if as_json:
        print(finite_json(_as_json(histories, settings, changes), indent=1))
    else:
        show_table(_table(histories, settings, changes))


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
    has_job = [run.known_job is not None for run in runs]
    return {
        path: [_value(v) if k else UNKNOWN for v, k in zip(values, has_job)]
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
    rows = {"digest": [run_data.get("digest", "not prepared") for run_data in data]}
    parts = dict.fromkeys(part for run_data in data for part in run_data.get("train_tokens", {}))
    for part in parts:
        counts = [run_data.get("train_tokens", {}).get(part) for run_data in data]
        rows[f"{part} tokens"] = [UNKNOWN if n is None else amount(n) for n in counts]
    return rows


def _losses(run: RunHistory) -> dict[str, dict[str, Any]]:
    """Return each stage's newest loss and held-out loss, each with its step."""
    by_stage: dict[str, dict[str, Any]] = {}
    for stage, rows in run.metrics.items():
        for kind in ("loss", "held_out_loss"):
            row = next((row for row in reversed(rows) if row.get(kind) is not None), None)
            if row is not None:
                by_stage.setdefault(stage, {})[kind] = {"value": row[kind], "step": row["step"]}
    return by_stage


def _loss_rows(runs: Sequence[RunHistory]) -> dict[str, list[str]]:
    losses = [_losses(run) for run in runs]
    rows = {}
    for stage in dict.fromkeys(stage for run_losses in losses for stage in run_losses):
        for kind, label in (("loss", "training"), ("held_out_loss", "held out")):
            values = [run_losses.get(stage, {}).get(kind) for run_losses in losses]
            if any(values):
                rows[f"{stage}, {label}"] = [
                    UNKNOWN if f is None else f"{f['value']:.4f} at step {f['step']:,}"
                    for f in values
                ]
    return rows or {"no step was trained": []}


def _measured_rows(changes: Sequence[Sequence[Compared]]) -> dict[str, list[str]]:
    """Return the values of each measure, with the differences from the first run."""
    by_name = [{row.name: row for row in rows} for rows in changes]
    cells: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for measured_of_run in by_name for name in measured_of_run):
        rows = [measured_of_run.get(name) for measured_of_run in by_name]
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
