"""Sections of the page that are text alone: what was measured, and the record of the run.

A section has a title and blocks: sentences, tables, bars, and lists. The page's script draws them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import duration, moment, number_or_dash, passes_in_words
from pipeline.cost.costs import ELSE
from pipeline.job import Job
from pipeline.report.blocks import table_block, text_block
from pipeline.report.history import STAGE_NAMES, Row, RunHistory
from pipeline.report.result_tables import result_blocks

# The numbers of a layer's experts are the mean of this many steps, the last ones of a stage.
LAST_STEPS = 50

Block = dict[str, Any]
Section = dict[str, Any]


def measured_sections(history: RunHistory, results: Mapping[str, Any]) -> list[Section]:
    """Return what was measured of the models and their layers; nothing for an unknown job."""
    if history.known_job is None:
        return []
    return _with_content(
        {
            "Evaluation": [
                text_block(block) if isinstance(block, str) else table_block(*block)
                for block in result_blocks(history.job, results)
            ],
            "Experts": _experts(history),
            "Gates": _gates(history),
        }
    )


def record_sections(history: RunHistory, published: Mapping[str, Any]) -> list[Section]:
    """Return what has happened to the run, and where its things are."""
    watched = [
        (moment(event["at"]), [f"{event['what']}: {event['why']}", *event["done"]])
        for event in history.of_kind("watch")
    ]
    return _with_content(
        {
            "Stages": [_stages(history)],
            "Where this start's time went": _phases(history.of_kind("phase")),
            "Attempts": _attempts(history.attempts()),
            "Rows left out": _dated([(at, [sentence]) for at, sentence in history.left_out()]),
            "Hops": _dated(history.hops()),
            "What the watcher did": _dated(watched),
            "Changes of code": _dated(
                [(moment(event["at"]), event["changes"]) for event in history.of_kind("changed")]
            ),
            "Where things are": [{"facts": _places(history, published)}],
        }
    )


def _with_content(sections: Mapping[str, Sequence[Block]]) -> list[Section]:
    return [{"title": title, "blocks": blocks} for title, blocks in sections.items() if blocks]


def _dated(entries: Sequence[tuple[str, Sequence[str]]]) -> list[Block]:
    """Return a list of (when, lines); nothing if there are none."""
    return [{"entries": entries}] if entries else []


def _layers(header: Sequence[str], columns: Sequence[Sequence[str]]) -> Block:
    return table_block(
        ("layer", *header),
        [[f"blocks.{layer}", *cells] for layer, cells in enumerate(zip(*columns))],
    )


def _experts(history: RunHistory) -> list[Block]:
    """Say how evenly each layer's router spreads the tokens."""
    measured = history.measured("expert_load")
    experts = history.job.model_config_resolved().experts if measured else None
    if experts is None:
        return []
    header: list[str] = []
    columns: list[list[str]] = []
    for stage, rows in measured.items():
        header += [f"{STAGE_NAMES[stage]}: load", "entropy"]
        columns += [_means(rows, "expert_load", 2), _means(rows, "router_entropy", 3)]
    note = (
        f"Means of the last {LAST_STEPS} steps. Load: the tokens of the busiest expert, as a "
        "multiple of an expert's mean. 1.0 is even, and "
        f"{experts.n / experts.top_k:.2g} is the worst: some expert gets every token. Entropy of "
        f"the router: {math.log(experts.n):.3f} nats if it prefers no expert, 0 if it is always "
        "sure."
    )
    return [_layers(header, columns), text_block(note, faint=True)]


def _means(rows: Sequence[Row], key: str, digits: int) -> list[str]:
    """Return each layer's mean over the last rows."""
    means = []
    for layer in zip(*(row.get(key, ()) for row in rows[-LAST_STEPS:])):
        numbers = [value for value in layer if value is not None]
        means.append(number_or_dash(sum(numbers) / len(numbers) if numbers else None, digits))
    return means


def _gates(history: RunHistory) -> list[Block]:
    """Say how well each layer's gate knows which tokens it can skip: its loss, first and last."""
    header: list[str] = []
    columns: list[list[str]] = []
    for stage, rows in history.measured("gate_loss").items():
        header += [f"{STAGE_NAMES[stage]}: first loss", "last"]
        columns += [list(map(number_or_dash, row["gate_loss"])) for row in (rows[0], rows[-1])]
    if not columns:
        return []
    return [
        _layers(header, columns),
        text_block(
            "Mean binary cross-entropy in nats of a gate's confidence in one step.", faint=True
        ),
    ]


def _stages(history: RunHistory) -> Block:
    rows = []
    for stage in history.stages:
        record = history.head.stages.get(stage)
        step = next((e.step for e in history.head.checkpoints if e.stage == stage), None)
        seconds = history.seconds_of(stage)
        rows.append(
            (
                stage,
                f"finished {moment(record.at)}" if record else "not finished",
                f"{step:,}{_passes(history.known_job, stage, step)}" if step is not None else "",
                duration(seconds) if seconds is not None else "",
                record.digest[:12] if record else "",
            )
        )
    return table_block(("stage", "state", "steps", "time", "digest"), rows, numbers_from=2)


def _passes(job: Job | None, stage: str, step: int) -> str:
    """Return how often the data were read up to a step, if the job knows their rows and reads all
    of them alike."""
    if job is None or stage not in job.train_stages or (stage == "pretrain" and job.mixes):
        return ""
    section = job.section(stage)
    return (
        f" ({passes_in_words(step * section.global_batch / section.rows)})" if section.rows else ""
    )


def _phases(phases: Sequence[Row]) -> list[Block]:
    """Show a bar for each phase of the latest `pion run`, in order.

    A total counts from the command's start. Phases may overlap; if they don't fill a total, the
    rest has a bar.
    """
    newest = max((phase["epoch"] for phase in phases), default=0)
    rows: list[tuple[str, float]] = []
    for phase in phases:
        name, seconds = phase["name"], float(phase["seconds"])
        if phase["epoch"] != newest:
            continue
        if phase.get("total"):
            total = sum(seconds for _, seconds in rows)
            rows += [(ELSE, seconds - total)] if seconds > total else []
            name = f"from the start to the {name}"
        rows.append((name, seconds))
    bars = [(name, duration(seconds), seconds) for name, seconds in rows]
    return [{"bars": bars}] if bars else []


def _attempts(rows: Sequence[Row]) -> list[Block]:
    """Show all plain values of each attempt, as (heading, facts)."""
    shown = []
    for row in rows:
        facts = [
            (key.replace("_", " "), _cell(key, value))
            for key, value in row.items()
            if key != "at" and isinstance(value, str | int | float) and value != ""
        ]
        heading = f"{row['at']}, {STAGE_NAMES.get(row['stage'], row['stage'])}"
        shown.append({"heading": heading, "facts": facts})
    return shown


def _cell(key: str, value: Any) -> str:
    if key == "seconds":
        return duration(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _places(history: RunHistory, published: Mapping[str, Any]) -> list[tuple[str, str]]:
    sources = [
        f"{event['from']} at {event['stage']} step {event['at_step']:,}"
        for event in history.of_kind("forked")
    ]
    places = [("run", history.url), *(("forked from", source) for source in sources)]
    if published:
        places.append(("model", str(published.get("url") or published.get("path"))))
        places.append(("card", str(published.get("card"))))
    return places
