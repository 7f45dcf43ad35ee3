"""Rows of metrics and events that can't be read are skipped and counted, and end no command."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from typing import Any

import pytest

from pipeline.cost.costs import LOST, LostMachine, read_log
from pipeline.machine.rented import RentedMachine, claim_event
from pipeline.state.record_json import finite_json
from pipeline.state.rows import LARGEST_LINE, Unreadable, event_row, metrics_row
from pipeline.state.run_state import RunState
from tests.hostile.hostile_run import NOW, make_hostile_run, path_of, pion, replace
from tests.hostile.record_attacks import DEPTH, attacks_on, nested, places
from tests.paths import OLDER_RUNS

METRICS: dict[str, Any] = {
    "step": 2,
    "epoch": 1,
    "at": NOW,
    "loss": 2.5,
    "lr": 1e-3,
    "held_out_loss": 2.5,
    "tokens_per_second": 1000.0,
    "rows": [4, 8],
    "expert_load": [1.5],
    "router_entropy": [0.9],
    "sample": {"prompt": "a", "text": "b"},
}
MACHINE = RentedMachine(
    "pod",
    "RunPod",
    "CA",
    "CA-1",
    "cluster",
    "A40",
    2,
    1,
    True,
    "host",
    NOW - 60,
    "7",
    {"machine up": 30.0},
)
LOST_MACHINE = LostMachine("gone", "RunPod", "A40", 1, 0.5, "7", NOW, NOW + 60)
CLAIM = {"session": "s", "started": NOW - 60, "reason": "it was released"}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    found = {"event": kind, "epoch": 1, "at": NOW, **fields}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


EVENTS: dict[str, dict[str, Any]] = {
    "machine": event(**{"kind": "", **claim_event(MACHINE, 0.5, **CLAIM)}),  # type: ignore[arg-type]
    "process": event(**{"kind": "", **claim_event(None, 0.5, **CLAIM)}),  # type: ignore[arg-type]
    "lost": event(LOST, **dataclasses.asdict(LOST_MACHINE)),
    "phase": event("phase", name="first step", seconds=2.5, total=True, parts={"a": 1.0}),
    "training": event(
        "training",
        stage="pretrain",
        from_step=1,
        host="host",
        device="A40",
        python="3.11",
        dtype="float32",
        workers=1,
        micro_batch=4,
        grad_accum=1,
        seq_len=32,
        global_batch=4,
        lr=1e-3,
        next_row=4,
    ),
    "saved": event("saved", stage="pretrain", step=2, stall=0.5, write=1.5),
    "hop": event("hop", stage="pretrain", receipt=["hop: a → b"]),
    "changed": event("changed", changes=["torch 1 → 2"]),
    "forked": event("forked", **{"from": "x"}, stage="sft", at_step=5),
}
# The fields that no reader uses. They may be anything.
FREE = {
    "machine": {"zone", "session"},
    "process": {"session"},
    "training": {"python", "dtype"},
    "saved": {"stage", "step"},
    "hop": {"stage"},
}
# The fields without which nothing is read.
NEEDED = {"epoch", "at"}
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    return make_hostile_run(tmp_path_factory.mktemp("rows") / "runs")


def parsed(kind: str, line: bytes) -> Any:
    return metrics_row(line) if kind == "metrics" else event_row(line)


def good(kind: str) -> Any:
    return METRICS if kind == "metrics" else EVENTS[kind]


@pytest.mark.parametrize("kind", [*EVENTS, "metrics"])
def test_a_good_row_is_read_as_it_was_written(kind: str) -> None:
    assert parsed(kind, json.dumps(good(kind)).encode()) == good(kind)
    assert [place for place, value in places(good(kind)) if value in (None, {}, [])] == []


@pytest.mark.parametrize("kind", [*EVENTS, "metrics"])
def test_a_row_with_a_value_of_another_type_is_unreadable(kind: str) -> None:
    for case in attacks_on(good(kind)):
        row = parsed(kind, case.on(good(kind)))
        other_type = case.what == "wrong type" and case.place[0] not in FREE.get(kind, ())
        needed = case.place[0] in NEEDED | ({"step"} if kind == "metrics" else {"event"})
        if case.what == "deep" or other_type or (needed and case.what not in ("escape", "missing")):
            assert row is None, case
        assert row is None or json.dumps(row, allow_nan=False), case


# ---------------------------------------------------------------- through the commands


def write_rows(run: RunState, rows: list[tuple[str, bytes]]) -> None:
    """Replace all rows of the run."""
    for log in ("events", "metrics"):
        shutil.rmtree(path_of(run, log), ignore_errors=True)
        lines = [line for kind, line in rows if (kind == "metrics") == (log == "metrics")]
        if lines:
            folder = "events/1" if log == "events" else "metrics/pretrain/1"
            replace(run, f"{folder}/000000.jsonl", b"\n".join(lines) + b"\n")


# A row that belongs to the attempt, without a loss that would have to be drawn.
UNDRAWN = {key: METRICS[key] for key in ("step", "epoch", "at", "sample")}


@pytest.mark.parametrize("kind", [*EVENTS, "metrics"])
def test_hostile_rows_are_counted_and_reports_leave_them_out(
    kind: str, run: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [case.on(good(kind)) for case in attacks_on(good(kind))]
    around = [(name, json.dumps(event).encode()) for name, event in EVENTS.items()]
    around.append(("metrics", json.dumps(UNDRAWN).encode()))
    write_rows(run, [*around, *((kind, line) for line in cases)])
    unreadable = sum(parsed(kind, line) is None for line in dict.fromkeys(cases))
    code, output = pion(capsys, "status", run.url, "--json")
    assert code == 0, output
    assert json.loads(output)["unreadable_rows"] == unreadable > 0
    code, output = pion(capsys, "status", run.url)
    assert code == 0, output
    assert f"{unreadable} rows of metrics and events could not be read. The first is in" in output
    assert "\x1b" not in output
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        code, output = pion(capsys, "report", run.url)
    assert code == 0, output
    assert not [str(each.message) for each in heard if issubclass(each.category, UserWarning)]
    page = path_of(run, "report.html").read_text()
    assert f"{unreadable} rows of metrics and events could not be read" in page


def test_unreadable_lines_and_foreign_files_are_counted(
    run: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
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
    code, output = pion(capsys, "status", run.url)
    assert code == 0
    assert "14 rows of metrics and events could not be read. The first is in file://" in output


def test_without_unreadable_rows_nothing_is_said(
    run: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(run, [("metrics", json.dumps(METRICS).encode())])
    assert "could not be read" not in pion(capsys, "status", run.url)[1]
    assert Unreadable().describe() is None


# ---------------------------------------------------------------- honest rows


def test_all_rows_of_older_runs_are_read() -> None:
    lines = 0
    for path in (OLDER_RUNS / "store").rglob("*/0*.jsonl"):
        parse = event_row if "events" in path.parts else metrics_row
        for line in path.read_bytes().splitlines():
            row = parse(line)
            if row is None or row != json.loads(line):
                raise AssertionError((path, line))
            lines += 1
    assert lines > 50


def test_a_row_with_nan_of_an_older_pion_is_read() -> None:
    row = METRICS | {"held_out_loss_sem": float("nan"), "loss": float("inf")}
    assert metrics_row(json.dumps(row).encode()) == row | {"held_out_loss_sem": None, "loss": None}
    assert "NaN" not in finite_json(row)


def test_a_line_of_half_the_limit_is_read() -> None:
    row = METRICS | {"sample": {"prompt": "a", "text": "x" * (LARGEST_LINE // 2)}}
    assert metrics_row(json.dumps(row).encode()) == row
