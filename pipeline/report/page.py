"""The report of a run: one HTML file that needs nothing else, in light and dark.

Every text that came from outside (samples, names, reasons) is escaped; plots are embedded.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pipeline.console.formats import duration
from pipeline.cost.by_cause import Costs
from pipeline.job import Job
from pipeline.report.cost import cost_section
from pipeline.report.html import bars, items, section, table, text
from pipeline.report.plots import TITLES, loss_plot, throughput_plot
from pipeline.report.result_tables import (
    choice_rows,
    human_count,
    language_rows,
    lm_eval_rows,
    percent_with_error,
    value_with_error,
)

TEMPLATE = Path(__file__).with_name("templates") / "report.html"
SAMPLED_STEPS = 6  # of each prompt, evenly spread from the first to the last

Row = Mapping[str, Any]


def write_report(
    path: str | Path,
    *,
    job: Job,
    head_info: Mapping[str, Any],
    metrics: Mapping[str, Sequence[Row]],
    evaluations: Mapping[str, Sequence[Row]],
    samples: Sequence[Row],
    results: Mapping[str, Any],
    lineage: Sequence[Row],
    timings: Sequence[Row],
    hops: Sequence[Row] = (),
    costs: Costs | None = None,
    changes: Sequence[Row] = (),
) -> Path:
    """Write the report to `path`, replacing it atomically, and return `path`.

    What a mapping lacks is left out of the report.

    Args:
        head_info: `run` (its URL), `parameters`, `paths` (name → path or URL of the model, its card
            …), `stages` (rows of `stage`, `status`, `digest`, `step`, `seconds`).
        metrics: stage → rows of `step`, `epoch`, `loss`, `tokens_per_second`, `mfu` …
        evaluations: stage → rows of `step`, `held_out_loss`.
        samples: rows of `stage`, `step`, `prompt`, `text` (what followed the prompt).
        results: what the evaluate stage reports.
        lineage: a row for each claim: `epoch`, `at`, `host`, `device`, `workers`, `seconds` …;
            and one of `at` and `left_out` for each range of rows that is not trained on.
        timings: the phases of this run of the command, in order: `name`, `seconds`, and `total`
            where the seconds count from its start.
        hops: the receipt of each change of machine: `at`, `receipt` (its lines).
        costs: what all machines cost, by cause.
        changes: `at` and `changes` (lines) of other code that the run went on with.
    """
    path = Path(path)
    sections = [
        _summary(job, head_info, metrics, results, costs),
        _plots({stage: _by_step(metrics, evaluations, stage) for stage in TITLES}),
        _evaluation(results),
        _samples(samples),
        _stages(head_info.get("stages", ())),
        _phases(timings),
        cost_section(costs) if costs and costs.machines else "",
        _attempts(lineage),
        _left_out(lineage),
        _hops(hops),
        _changes(changes),
        _paths(head_info.get("paths", {})),
    ]
    html = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"{escape(job.name)} · Pion", body="\n".join(part for part in sections if part)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)
    return path


def _summary(
    job: Job,
    head_info: Mapping[str, Any],
    metrics: Mapping[str, Sequence[Row]],
    results: Mapping[str, Any],
    costs: Costs | None,
) -> str:
    figures: list[tuple[str, str]] = []
    if parameters := head_info.get("parameters"):
        figures.append(("parameters", human_count(parameters)))
    last = [(stage, metrics[stage][-1]) for stage in job.train_stages if metrics.get(stage)]
    tokens = 0
    for stage, row in last:
        seq_len = job.data.seq_len if stage == "pretrain" else job.sft_seq_len
        tokens += row["step"] * job.section(stage).global_batch * seq_len
    if tokens:
        figures.append(("tokens trained on", human_count(tokens)))
    if last:
        stage, row = last[-1]
        figures.append((f"{TITLES[stage].lower()} steps", f"{row['step']:,}"))
    measured = results.get(job.train_stages[-1]) or {}
    if "bits_per_byte" in measured:
        figures.append(("bits per byte", f"{measured['bits_per_byte']:.3f}"))
    if costs is not None and costs.goodput is not None:
        figures.append(("time", duration(3600 * costs.hours)))
        if costs.dollars is not None:
            figures.append(("cost", f"${costs.dollars:.2f}"))
        figures.append(("useful time", f"{100 * costs.goodput:.1f} %"))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures
    )
    run = f'<p class="faint"><code>{escape(str(head_info.get("run", job.name)))}</code></p>'
    return f'<h1>{escape(job.name)}</h1>\n{run}\n<dl class="figures">{cells}</dl>'


def _by_step(
    metrics: Mapping[str, Sequence[Row]], evaluations: Mapping[str, Sequence[Row]], stage: str
) -> list[Row]:
    rows = [*metrics.get(stage, ()), *evaluations.get(stage, ())]
    return sorted(rows, key=lambda row: int(row["step"]))


def _plots(metrics: Mapping[str, Sequence[Row]]) -> str:
    if not any(metrics.values()):
        return ""
    loss = [loss_plot(metrics, dark=dark) for dark in (False, True)]
    speed = [throughput_plot(metrics, dark=dark) for dark in (False, True)]
    restarted = any(len({row.get("epoch") for row in rows}) > 1 for rows in metrics.values())
    note = "Dotted lines: the run went on after a restart, perhaps on another machine."
    caption = f'<p class="faint small">{note}</p>' if restarted else ""
    return (
        section(
            "Loss", _picture("training and held-out loss over optimizer steps", *loss) + caption
        )
        + "\n"
        + section("Throughput", _picture("tokens per second over optimizer steps", *speed))
    )


def _picture(description: str, light: bytes, dark: bytes) -> str:
    light_url, dark_url = (
        f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (light, dark)
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark_url}">'
        f'<img alt="{description}" src="{light_url}"></picture>'
    )


def _evaluation(results: Mapping[str, Any]) -> str:
    parts = []
    if language := language_rows(results):
        measures = ("loss (nats per token)", "perplexity", "bits per byte")
        parts.append(table(("on held-out text", *measures), language))
    response = results.get("sft") or {}
    if "response_loss" in response:
        loss = value_with_error(response, "response_loss")
        stops = percent_with_error(response, "stop_accuracy")
        header = ("on held-out conversations", "response loss", "ends where it should")
        parts.append(table(header, [("fine-tuned", loss, stops)]))
    if choices := choice_rows(results):
        names = ("multiple choice", "model", "accuracy", "chance", "questions")
        parts.append(table(names, choices, numbers_from=2))
    if lm_eval := lm_eval_rows(results):
        parts.append(table(("lm-evaluation-harness", "metric", "value"), lm_eval, numbers_from=2))
    if not parts:
        return ""
    note = '<p class="faint small">± is one standard error.</p>'
    return section("Evaluation", "\n".join([*parts, note]))


def _samples(samples: Sequence[Row]) -> str:
    by_prompt: dict[str, list[Row]] = {}
    for sample in samples:
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    parts = []
    for prompt, rows in by_prompt.items():
        for row in _spread(rows, SAMPLED_STEPS):
            stage = TITLES.get(row.get("stage", ""), "")
            parts.append(
                f'<div class="sample"><header>{stage} step {row["step"]:,}</header>'
                f"<p><b>{text(prompt)}</b>{text(row['text'])}</p></div>"
            )
    return section("Samples", "\n".join(parts)) if parts else ""


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly spread, first and last included."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _stages(stages: Sequence[Row]) -> str:
    if not stages:
        return ""
    rows = [
        (
            str(row["stage"]),
            str(row.get("status", "")),
            f"{row['step']:,}" if row.get("step") is not None else "",
            duration(row["seconds"]) if row.get("seconds") is not None else "",
            str(row.get("digest") or "")[:12],
        )
        for row in stages
    ]
    return section("Stages", table(("stage", "", "steps", "time", "digest"), rows, numbers_from=2))


def _phases(timings: Sequence[Row]) -> str:
    """One line for each phase; a total counts from the start of the command, the rest overlap."""
    rows = [
        (
            f"from the start to the {row['name']}" if row.get("total") else row["name"],
            float(row["seconds"]),
            [duration(row["seconds"])],
        )
        for row in timings
    ]
    return section("Where this start's time went", bars(rows)) if rows else ""


def _attempts(lineage: Sequence[Row]) -> str:
    rows = [row for row in lineage if "left_out" not in row]
    return section("Attempts", _records(rows)) if rows else ""


def _left_out(lineage: Sequence[Row]) -> str:
    """The rows that a rewind left out, one item for each range."""
    entries = [(str(row["at"]), [row["left_out"]]) for row in lineage if "left_out" in row]
    return section("Rows left out", items(entries)) if entries else ""


def _hops(hops: Sequence[Row]) -> str:
    """The receipts, one item for each."""
    entries = [(str(hop["at"]), hop["receipt"]) for hop in hops]
    return section("Hops", items(entries)) if entries else ""


def _changes(changes: Sequence[Row]) -> str:
    """What was other code than before, one item for each start."""
    entries = [(str(row["at"]), row["changes"]) for row in changes]
    return section("Changes of code", items(entries)) if entries else ""


def _records(rows: Sequence[Row]) -> str:
    """A table of whatever plain values the rows hold, columns in the order they first appear."""
    columns = list(
        dict.fromkeys(
            key
            for row in rows
            for key, value in row.items()
            if isinstance(value, str | int | float) and value != ""
        )
    )
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    return table([column.replace("_", " ") for column in columns], cells, numbers_from=len(columns))


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "seconds":
        return duration(value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _paths(paths: Mapping[str, Any]) -> str:
    rows = [(name, str(path)) for name, path in paths.items() if path]
    return section("Where things are", table(("", ""), rows, numbers_from=2)) if rows else ""
