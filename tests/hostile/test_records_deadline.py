"""A deadline that can't be read is refused by name; a watcher's sign of life counts as absent."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.state.author import Author
from pipeline.state.deadline import DEADLINE, Asked, RunDeadline, read_deadline
from pipeline.state.run_state import RunState
from pipeline.state.watcher_beat import BEAT, read_beat
from tests.hostile.hostile_run import NOW, as_json, full_head, make_hostile_run, pion, replace
from tests.hostile.record_attacks import DEPTH, Attack, at_every_place, nested

SET = as_json(
    RunDeadline(
        NOW + 3600, 1800.0, NOW, Author("host", 7, "ann"), "pion launch", Asked(42.0, NOW, 1800.0)
    )
)
WATCHED: dict[str, Any] = {
    "format": 1,
    "at": NOW,
    "by": dataclasses.asdict(Author("host", 7, "ann")),
    "pion": "0.1.0 (abcdef0)",
    "knows_deadlines": 1,
    "risk_at": NOW + 1800,
    "saw": {"state": "on demand", "slack": 28800.0, "reserve": 2700.0, "work_left": 80640.0},
}
SHOWN = ("escape", "-1")
NOTHING = [b"", b"\xff\xfe", b"[]", b"{", nested(DEPTH).encode()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    run = make_hostile_run(tmp_path_factory.mktemp("deadlines") / "runs")
    replace(run, "HEAD.json", full_head().to_json())
    return run


@pytest.fixture
def run(shared: RunState) -> RunState:
    """A run that somebody on another machine owns, with a good deadline and watcher."""
    replace(shared, DEADLINE, json.dumps(SET).encode())
    replace(shared, BEAT, json.dumps(WATCHED).encode())
    return shared


def readable(run: RunState) -> bool:
    """Return whether the deadline can be read. If not, the message names the file."""
    try:
        read_deadline(run)
    except BadInput as error:
        return f"{run.name}/{DEADLINE}" not in str(error)
    return True


def status(run: RunState, capsys: pytest.CaptureFixture[str]) -> str:
    code, output = pion(capsys, "status", run.url)
    assert code == 0, output
    assert "\x1b" not in output
    assert "\x9b" not in output
    return output


def test_good_files_are_read(run: RunState) -> None:
    assert readable(run)
    beat = read_beat(run)
    assert beat is not None
    assert beat.risk_at == NOW + 1800


@at_every_place(SET)
def test_a_damaged_deadline_is_named_and_replaced_only_on_purpose(
    run: RunState, case: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, DEADLINE, case.on(SET))
    harmless = case.what == "escape" and isinstance(case.good, str)
    harmless |= case.what == "missing" and case.place == ("asked",)
    harmless |= case.what in ("null", "NaN") and case.place[-1] in ("at", "asked", "hours")
    assert readable(run) == harmless
    if case.what in SHOWN:
        assert ("deadline can't be read" in status(run, capsys)) != harmless
        code, output = pion(capsys, "deadline", run.url)
        assert (code == 0) == harmless, output
        assert "\x1b" not in output


@at_every_place(WATCHED)
def test_an_unreadable_sign_of_life_is_none(
    run: RunState, case: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, BEAT, case.on(WATCHED))
    harmless = case.what == "escape" and isinstance(case.good, str)
    harmless |= case.what == "missing" and case.place[-1] in ("knows_deadlines", "risk_at", "saw")
    harmless |= case.what in ("null", "NaN") and case.place[-1] == "risk_at"
    harmless |= case.what == "-1" and case.place[-1] == "slack"
    assert (read_beat(run) is not None) == harmless
    if case.what in SHOWN:
        status(run, capsys)


@pytest.mark.parametrize("path", [DEADLINE, BEAT])
@pytest.mark.parametrize("data", NOTHING, ids=lambda data: repr(data[:9]))
def test_a_file_that_is_no_record_ends_no_status(
    run: RunState, path: str, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, path, data)
    assert ("deadline can't be read" in status(run, capsys)) == (path == DEADLINE)
