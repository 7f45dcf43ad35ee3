"""Rows of metrics and events that can't be read are skipped and counted, and end no command."""

import json
import shutil
import warnings

import pytest

from pipeline.cost.costs import read_log
from pipeline.state.record_json import finite_json
from pipeline.state.rows.row_types import LARGEST_LINE, Unreadable, event_row, metrics_row
from tests.hostile.attacks import DEPTH, attacks_on, nested
from tests.hostile.hostile_run import path_of, replace
from tests.hostile.in_process import ends_with
from tests.hostile.rows import EVENTS, METRICS, ROWS

BAD_LINES = [
    b"{",
    b"[]",
    b"5",
    b"",
    b"\xff",
    b'{"event": "phase"}',
    b'"' + b"x" * LARGEST_LINE + b'"',
    nested(DEPTH).encode(),
]


def parsed(kind, line):
    return metrics_row(line) if kind == "metrics" else event_row(line)


# ---------------------------------------------------------------- through the commands


def write_rows(run, rows):
    """Replace all rows of the run."""
    for log in ("events", "metrics"):
        shutil.rmtree(path_of(run, log), ignore_errors=True)
        lines = [line for kind, line in rows if (kind == "metrics") == (log == "metrics")]
        if lines:
            folder = "events/1" if log == "events" else "metrics/pretrain/1"
            replace(run, f"{folder}/000000.jsonl", b"\n".join(lines) + b"\n")


# A row that belongs to the attempt, without a loss that would have to be drawn.
UNDRAWN = {key: METRICS[key] for key in ("step", "epoch", "at", "sample")}


@pytest.mark.parametrize("kind", ROWS)
def test_hostile_rows_are_counted_and_reports_leave_them_out(kind, run):
    cases = [case.on(ROWS[kind]) for case in attacks_on(ROWS[kind])]
    around = [(name, json.dumps(event).encode()) for name, event in EVENTS.items()]
    around.append(("metrics", json.dumps(UNDRAWN).encode()))
    write_rows(run, [*around, *((kind, line) for line in cases)])
    unreadable = sum(parsed(kind, line) is None for line in dict.fromkeys(cases))
    output = ends_with(0, "status", run.url, "--json")
    assert json.loads(output)["unreadable_rows"] == unreadable > 0
    output = ends_with(0, "status", run.url)
    assert f"{unreadable} rows of metrics and events could not be read. The first is in" in output
    assert "\x1b" not in output
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        output = ends_with(0, "report", run.url)
    assert not [str(each.message) for each in heard if issubclass(each.category, UserWarning)]
    page = path_of(run, "report.html").read_text()
    assert f"{unreadable} rows of metrics and events could not be read" in page


def test_unreadable_lines_and_foreign_files_are_counted(run):
    lines = dict.fromkeys([*BAD_LINES, json.dumps(EVENTS["phase"]).encode()])
    write_rows(run, [("events", line) for line in lines])
    foreign = ["events/x/0.jsonl", "events/0.jsonl", "events/1/a b.jsonl", "events/1/2/3.jsonl"]
    foreign += [f"events/{'9' * 40}/0.jsonl", "metrics/sft/-1/0.jsonl"]
    for path in foreign:
        place = path_of(run, "HEAD.json").parent / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"{}\n")
    log = read_log(run)
    assert [event["event"] for event in log.events] == ["phase"]
    assert log.unreadable.count == len(BAD_LINES) + len(foreign)
    output = ends_with(0, "status", run.url)
    assert "14 rows of metrics and events could not be read. The first is in file://" in output


def test_without_unreadable_rows_nothing_is_said(run):
    write_rows(run, [("metrics", json.dumps(METRICS).encode())])
    assert "could not be read" not in ends_with(0, "status", run.url)
    assert Unreadable().describe() is None


# ---------------------------------------------------------------- honest rows


def test_a_row_with_nan_is_written_with_null():
    row = METRICS | {"held_out_loss_sem": float("nan"), "loss": float("inf")}
    line = finite_json(row).encode()
    assert metrics_row(line) == row | {"held_out_loss_sem": None, "loss": None}


def test_a_line_of_half_the_limit_is_read():
    row = METRICS | {"sample": {"prompt": "a", "text": "x" * (LARGEST_LINE // 2)}}
    assert metrics_row(json.dumps(row).encode()) == row
