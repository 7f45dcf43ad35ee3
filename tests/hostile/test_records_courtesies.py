"""Heartbeats, requests and notes of rentals that can't be read are as if they were not there."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pipeline.state.heartbeat import Heartbeat
from pipeline.state.rental_note import NOTE, RentalNote, read_rental_note
from pipeline.state.run_state import RunState, heartbeat_path
from pipeline.state.stop_requests import clear_stops, pending_stop
from tests.hostile.hostile_run import NOW, as_json, full_head, make_hostile_run, pion, replace
from tests.hostile.record_attacks import DEPTH, Attack, at_every_place, nested

BEAT: dict[str, Any] = {
    "epoch": 1,
    "owner": as_json(full_head().owner),
    "at": NOW,
    "beat": 3,
    "status": {"stage": "sft", "step": 5, "steps": 9, "loss": 2.5, "tokens_per_second": 9.0},
}
REQUEST: dict[str, Any] = {
    "format": 1,
    "kind": "stop",
    "at": NOW,
    "by": {"host": "host", "pid": 7, "user": "ann"},
    "reason": "pion stop",
    "except_launch": "other",
}
RENTAL = dataclasses.asdict(RentalNote(NOW, "host", "user", "launch", 1))
REQUESTED = "requests/1.json"
BEATEN = heartbeat_path(1)
# The attacks that also go through `pion status`.
SHOWN = ("escape", "-1")
NOTHING = [b"", b"\xff\xfe", b"[]", b"{", nested(DEPTH).encode()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    run = make_hostile_run(tmp_path_factory.mktemp("courtesies") / "runs")
    replace(run, "HEAD.json", full_head().to_json())
    return run


@pytest.fixture
def run(shared: RunState) -> RunState:
    """A run that somebody on another machine owns, with good files."""
    for path, good in ((BEATEN, BEAT), (REQUESTED, REQUEST), (NOTE, RENTAL)):
        replace(shared, path, json.dumps(good).encode())
    return shared


def status(run: RunState, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `pion status` says. It must say something, whatever the files hold."""
    code, output = pion(capsys, "status", run.url)
    assert code == 0, output
    assert "\x1b" not in output
    assert "\x9b" not in output
    return output


def test_good_files_are_shown(run: RunState, capsys: pytest.CaptureFixture[str]) -> None:
    output = status(run, capsys)
    assert "heartbeat" in output
    assert "sft step 5/9, loss 2.5000, 9 tokens/s" in output
    assert "asked to stop: pion stop by ann on host" in output
    assert "machines: rented from host" in output


@at_every_place(BEAT)
def test_an_unreadable_heartbeat_is_none(
    run: RunState, case: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, BEATEN, case.on(BEAT))
    beat = run.heartbeat(1)
    if case.what == "deep" or case.place == ("at",):
        assert beat is None
    if case.what in SHOWN:
        assert ("no heartbeat" in status(run, capsys)) == (beat is None)


@at_every_place(REQUEST)
def test_an_unreadable_request_is_named_and_stops_nothing(
    run: RunState, case: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, REQUESTED, case.on(REQUEST))
    notes: list[str] = []
    request = pending_stop(run, notes.append)
    if case.what == "deep" or case.place[0] in ("at", "kind", "format"):
        assert request is None
    assert [REQUESTED in note for note in notes] == ([] if request else [True])
    if case.what in SHOWN:
        output = status(run, capsys)
        assert ("asked to stop" in output) == (request is not None)
        assert ("a request was ignored" in output) == (request is None)


@at_every_place(RENTAL)
def test_an_unreadable_note_of_a_rental_is_none(
    run: RunState, case: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, NOTE, case.on(RENTAL))
    note, version = read_rental_note(run)
    assert version is not None
    harmless = case.what == "escape" and isinstance(case.good, str)
    harmless |= case.what == "missing" and case.place == ("over",)  # it is false
    assert (note is not None) == harmless
    if case.what in SHOWN:
        assert ("machines: rented from" in status(run, capsys)) == harmless


@pytest.mark.parametrize("path", [BEATEN, REQUESTED, NOTE])
@pytest.mark.parametrize("data", NOTHING, ids=lambda data: repr(data[:9]))
def test_a_file_that_is_no_record_is_as_if_it_was_not_there(
    run: RunState, path: str, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, path, data)
    output = status(run, capsys)
    words = {BEATEN: "no heartbeat", REQUESTED: "a request was ignored"}
    assert words.get(path, "") in output
    assert "machines: rented" in output or path == NOTE


def test_an_owner_with_hostile_requests_beats_on_and_a_person_clears_them(run: RunState) -> None:
    replace(run, REQUESTED, nested(DEPTH).encode())
    replace(run, "requests/2.json", json.dumps({**REQUEST, "at": 1e300}).encode())
    owner = full_head().owner
    assert owner is not None
    heartbeat = Heartbeat(run, 1, owner, on_taken_over=lambda head: pytest.fail("still the owner"))
    heartbeat.beat()
    assert heartbeat.stop_request is None
    found = run.heartbeat(1)
    assert found is not None
    assert found["at"] > NOW
    assert clear_stops(run) == 2
