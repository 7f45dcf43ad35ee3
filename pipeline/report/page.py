"""The report of a run as HTML: one file with everything in it, for light and dark screens.

Every text from outside (samples, names, reasons) is escaped. The plots are embedded.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from pipeline.console.formats import duration, moment
from pipeline.report.cost import cost_section
from pipeline.report.experts import experts_section
from pipeline.report.gates import gates_section
from pipeline.report.history import Row, RunHistory, Sample
from pipeline.report.html import bars, items, section, table, text
from pipeline.report.plots import TITLES, loss_plot, throughput_plot
from pipeline.report.recipes import recipes_section
from pipeline.report.result_tables import (
    HEADER,
    before_after_rows,
    choice_rows,
    chosen_checkpoint,
    human_count,
    language_rows,
    lm_eval_rows,
    share_with_interval,
    value_with_error,
    what_it_forgot,
    whose_bytes,
)

TEMPLATE = Path(__file__).with_name("templates") / "report.html"
SAMPLED_STEPS = 6  # for each prompt, evenly spread from the first to the last


def write_report(path: str | Path, history: RunHistory) -> Path:
    """Write the report of a run to `path`, replacing it atomically, and return `path`.

    The report leaves out what has not happened yet. Raises OSError if the file can't be written.
    Then an earlier report is still there, and nothing else is left.
    """
    path = Path(path)
    sections = [
        _summary(history),
        _plots(history.curves()),
        experts_section(history),
        recipes_section(history),
        gates_section(history),
        _evaluation(history),
        _samples(history.samples()),
        _stages(history),
        _phases(history.latest_phases()),
        cost_section(history.costs) if history.costs.machines else "",
        _attempts(history.attempts()),
        _dated("Rows left out", [(at, [words]) for at, words in history.left_out()]),
        _dated("Hops", history.hops()),
        _dated("What the watcher did", history.watched()),
        _dated("Changes of code", history.code_changes()),
        _paths(history),
    ]
    html = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"{escape(history.job.name)} · Pion",
        body="\n".join(part for part in sections if part),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return path


def _summary(history: RunHistory) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _figures(history)
    )
    run = f'<p class="faint"><code>{escape(history.url)}</code></p>'
    if missing := history.unreadable.describe():
        run += f'\n<p class="faint">{text(missing)}</p>'
    return f'<h1>{escape(history.job.name)}</h1>\n{run}\n<dl class="figures">{cells}</dl>'


def _figures(history: RunHistory) -> list[tuple[str, str]]:
    """Return (name, value) of the numbers at the top of the page."""
    job, costs = history.job, history.costs
    figures: list[tuple[str, str]] = []
    if parameters := history.published.get("parameters"):
        figures.append(("parameters", human_count(parameters)))
    last = [(stage, rows[-1]) for stage in job.train_stages if (rows := history.steps(stage))]
    tokens = 0
    for stage, row in last:
        seq_len = job.seq_len(stage)
        tokens += row["step"] * job.section(stage).global_batch * seq_len
    if tokens:
        figures.append(("tokens trained on", human_count(tokens)))
    if last:
        stage, row = last[-1]
        figures.append((f"{TITLES[stage].lower()} steps", f"{row['step']:,}"))
    measured = history.results.get(job.train_stages[-1]) or {}
    if measured.get("bits_per_byte") is not None:
        figures.append(("bits per byte", f"{measured['bits_per_byte']:.3f}"))
    if costs.goodput is not None:
        figures.append(("time", duration(3600 * costs.hours)))
        if costs.dollars is not None:
            figures.append(("cost", f"${costs.dollars:.2f}"))
        figures.append(("useful time", f"{100 * costs.goodput:.1f} %"))
    if history.deadline is not None and history.deadline.at is not None:
        end = history.finished_at
        met = "not done yet" if end is None else history.deadline.describe_end(end)
        figures.append((f"deadline {moment(history.deadline.at)}", met))
    return figures


def _plots(curves: Mapping[str, Sequence[Row]]) -> str:
    if not any(curves.values()):
        return ""
    loss = [loss_plot(curves, dark=dark) for dark in (False, True)]
    speed = [throughput_plot(curves, dark=dark) for dark in (False, True)]
    restarted = any(len({row.get("epoch") for row in rows}) > 1 for rows in curves.values())
    note = "Dotted lines: the run resumed after a restart, perhaps on another machine."
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


def _evaluation(history: RunHistory) -> str:
    results, parts = history.results, []
    if chosen := chosen_checkpoint(results):
        parts.append(f"<p>{text(chosen)}</p>")
    if compared := before_after_rows(history.job, results):
        parts.append(table(("before and after training", *HEADER[1:]), compared))
        parts.append(f"<p>{text(what_it_forgot(history.job, results))}</p>")
    if language := language_rows(results):
        measures = ("loss (nats per token)", "perplexity", "bits per byte")
        parts.append(table(("on held-out text", *measures), language))
    if changed := whose_bytes(results):
        parts.append(f"<p>{text(changed)}</p>")
    response = results.get("sft") or {}
    if "response_loss" in response:
        loss = value_with_error(response, "response_loss")
        stops = share_with_interval(response, "stop_accuracy", "ends")
        early = share_with_interval(response, "false_stop_rate", "others")
        measures = ("response loss", "ends where it should", "ends where it should not")
        header = ("on held-out conversations", *measures)
        parts.append(table(header, [("fine-tuned", loss, stops, early)]))
    if choices := choice_rows(results):
        names = ("multiple choice", "model", "accuracy", "chance", "questions")
        parts.append(table(names, choices, numbers_from=2))
    if lm_eval := lm_eval_rows(results):
        parts.append(table(("lm-evaluation-harness", "metric", "value"), lm_eval, numbers_from=2))
    if not parts:
        return ""
    note = '<p class="faint small">± is one standard error.</p>'
    return section("Evaluation", "\n".join([*parts, note]))


def _samples(samples: Sequence[Sample]) -> str:
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    parts = []
    for prompt, of_prompt in by_prompt.items():
        for sample in _spread(of_prompt, SAMPLED_STEPS):
            parts.append(
                f'<div class="sample"><header>{TITLES[sample.stage]} step {sample.step:,}</header>'
                f"<p><b>{text(prompt)}</b>{text(sample.text)}</p></div>"
            )
    return section("Samples", "\n".join(parts)) if parts else ""


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return at most `count` samples, evenly spread, the first and the last included."""
    if len(samples) <= count:
        return list(samples)
    return [samples[round(i * (len(samples) - 1) / (count - 1))] for i in range(count)]


def _stages(history: RunHistory) -> str:
    rows = []
    for stage in history.job.stages:
        record = history.head.stages.get(stage)
        step = next((e.step for e in history.head.checkpoints if e.stage == stage), None)
        seconds = history.seconds_of(stage)
        rows.append(
            (
                stage,
                f"finished {moment(record.at)}" if record else "not finished",
                f"{step:,}" if step is not None else "",
                duration(seconds) if seconds is not None else "",
                record.digest[:12] if record else "",
            )
        )
    return section("Stages", table(("stage", "", "steps", "time", "digest"), rows, numbers_from=2))


def _phases(phases: Sequence[Row]) -> str:
    """Show one line for each phase. A total counts from the command's start. Phases may overlap."""
    rows = [
        (
            f"from the start to the {phase['name']}" if phase.get("total") else phase["name"],
            float(phase["seconds"]),
            [duration(phase["seconds"])],
        )
        for phase in phases
    ]
    return section("Where this start's time went", bars(rows)) if rows else ""


def _attempts(rows: Sequence[Row]) -> str:
    """Show a table of all plain values in the rows, with columns in order of first appearance."""
    if not rows:
        return ""
    columns = list(
        dict.fromkeys(
            key
            for row in rows
            for key, value in row.items()
            if isinstance(value, str | int | float) and value != ""
        )
    )
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    header = [column.replace("_", " ") for column in columns]
    return section("Attempts", table(header, cells, numbers_from=len(columns)))


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "seconds":
        return duration(value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _dated(title: str, entries: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Show a list of (when, lines); nothing if there are none."""
    return section(title, items(entries)) if entries else ""


def _paths(history: RunHistory) -> str:
    published = history.published
    rows = [("run", history.url)]
    for event in history.of_kind("forked"):
        source = f"{event['from']} at {event['stage']} step {event['at_step']:,}"
        rows.append(("forked from", source))
    if published:
        rows.append(("model", str(published.get("url") or published.get("path"))))
        rows.append(("card", str(published.get("card"))))
    return section("Where things are", table(("", ""), rows, numbers_from=2))
