"""`pion deadline` shows, changes and switches off a run's deadline, and says who watches it."""

import dataclasses
import json
import time
from unittest.mock import Mock

import pytest
import yaml

from pipeline.job import Deadline
from pipeline.rent.deadline.policy import State
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import (
    DEADLINE,
    Asked,
    change_deadline,
    new_deadline,
    read_deadline,
    write_first_deadline,
)
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.notes.watcher_beat import BEAT, Saw, write_beat
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.status.run_status import deadline_of, state_in_words
from pipeline.state.stores import FileStore
from tests.support.finished_run import make_run
from tests.support.jobs import tiny_dict
from tests.support.light_run import light_run
from tests.support.states import read


@pytest.fixture
def run(here):
    return make_run(here / "runs", saves=[], finished=[])


@pytest.fixture
def watched(tmp_path, time):
    """A run with a deadline in 42 hours, on a clock that stands still."""
    state = light_run(FileStore(tmp_path), clock=time.clock())
    launched(state, hours=42)
    return state


def launched(run, **asked):
    deadline = Asked.of(Deadline.model_validate(asked))
    return write_first_deadline(run, new_deadline(deadline, "pion launch", run.clock.now()))


def finished_run(folder):
    run = make_run(folder, saves=[], finished=[])
    claim = claim_run(run, Owner.me())
    run.write_job("d1", yaml.safe_dump(tiny_dict(sft=None)))
    claim.set_job("d1")
    for stage in ("prepare", "pretrain", "evaluate"):
        claim.finish_stage(stage, f"digest-{stage}", {})
    claim.release()
    return run


def of(run):
    return read_deadline(run)


def said(run):
    return "\n".join(deadline_of(run, read(run), run.clock.now())[1])


def test_a_run_without_a_deadline_says_so_and_how_to_set_one(run, pion):
    code, out, _ = pion("deadline", "demo")
    assert code == 0
    assert f"deadline: none. Set one: pion deadline {run.url} --hours N" in out


def test_a_finished_run_gets_no_deadline(here, pion):
    run = finished_run(here / "runs")
    code, _, err = pion("deadline", "demo", "--hours", "1.5")
    assert code == 2
    assert "run demo is finished" in err
    assert read_deadline(run) is None
    assert pion("deadline", "demo", "--off")[0] == 0


def test_hours_count_from_now(run, pion):
    before = time.time()
    code, out, _ = pion("deadline", "demo", "--hours", "1.5")
    assert code == 0
    assert before + 5400 <= (of(run).at or 0) <= time.time() + 5400
    assert of(run).margin == 1800
    assert "(in 1 h 30 min), margin 30 min 00 s; set by pion deadline (" in out


def test_a_change_keeps_the_margin_and_what_the_job_asked_for(run, pion):
    asked = launched(run, hours=42, margin=60).asked
    assert pion("deadline", "demo", "--at", "2999-12-01T18:00+01:00")[0] == 0
    assert (of(run).at, of(run).margin, of(run).asked) == (32_501_062_800, 60, asked)
    assert of(run).how == "pion deadline"


def test_status_reads_the_deadline_once(run, pion, monkeypatch):
    launched(run, hours=42)
    reads = Mock(wraps=read_deadline)
    monkeypatch.setattr("pipeline.state.status.run_status.read_deadline", reads)
    assert "deadline: " in pion("status", "demo")[1]
    reads.assert_called_once()


def test_a_deadline_is_switched_off_and_on_again(run, pion):
    launched(run, hours=42)
    assert "deadline: none (switched off); set by" in pion("deadline", "demo", "--off")[1]
    assert of(run).at is None
    pion("deadline", "demo", "--hours", "2")
    assert of(run).at is not None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--at", "2020-01-01T00:00Z"], "this moment was"),
        (["--at", "2999-12-01T18:00"], "the zone is missing"),
        (["--at", "tomorrow"], "not a moment"),
        (["--hours", "soon"], "should be a number above 0"),
        (["--hours", "-1"], "should be a number above 0"),
        (["--hours", "nan"], "should be a number above 0"),
        (["--hours", "1e9"], "at most 30,000"),
        (["--hours", "1", "--off"], "not allowed with"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(
    run, pion, arguments, expected
):
    before = launched(run, hours=42)
    code, _, err = pion("deadline", "demo", *arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert of(run) == before


def test_a_run_that_does_not_exist_gets_no_deadline(run, pion):
    code, _, err = pion("deadline", "other", "--hours", "1")
    assert code == 2
    assert "no run 'other'" in err
    assert read_deadline(RunState(run.store, "other")) is None


def test_a_run_whose_first_machine_is_still_awaited_can_be_changed(here, run, pion):
    booting = RunState(run.store, "booting")
    write_rental_note(booting, RentalNote(time.time(), "host", "user", "launch", 0), None)
    assert pion("deadline", "booting", "--hours", "1")[0] == 0
    assert of(booting).at is not None


def test_a_damaged_record_is_an_error_that_a_new_deadline_replaces(run, pion):
    run.store.write(run.key(DEADLINE), b"{")
    code, _, err = pion("deadline", "demo")
    assert code == 2
    assert f"pion deadline {run.url} --hours N" in err
    assert pion("deadline", "demo", "--hours", "1")[0] == 0
    assert pion("deadline", "demo")[0] == 0


# ---------------------------------------------------------------- who watches


def test_without_a_sign_of_life_it_says_how_to_watch_and_that_an_older_watcher_does_not_count(
    watched,
):
    assert "no watcher has been seen" in said(watched)
    assert f"start one: pion watch {watched.url}" in said(watched)


def test_a_watcher_that_is_too_old_is_named(watched):
    write_beat(watched, None)
    beat = json.loads(watched.store.read(watched.key(BEAT)))
    older = beat | {"knows_deadlines": 0, "pion": "0.0.9"}
    watched.store.write(watched.key(BEAT), json.dumps(older).encode())
    assert "(pion 0.0.9), is too old to know this deadline. Update pion there" in said(watched)


@pytest.mark.parametrize(
    ("risk_in", "silent", "words", "at_risk"),
    [
        (3600, 590, "last sign of life 9 min 50 s ago", False),
        (3600, 601, "nobody has watched for 10 min 01 s", True),
        (None, 3600, "nobody has watched for 1 h 00 min", False),  # it named no such moment
    ],
)
def test_after_ten_minutes_without_a_watcher_the_deadline_is_at_risk(
    watched, time, risk_in, silent, words, at_risk
):
    write_beat(watched, None if risk_in is None else time.time + risk_in)
    time.sleep(silent)
    assert ("watched by " in said(watched)) == (silent < 600)
    assert words in said(watched)
    assert ("at risk from 1970-01-12 14:46:40 UTC" in said(watched)) == at_risk
    assert ("at risk" in said(watched)) == at_risk


# ---------------------------------------------------------------- what the watcher saw


def saw(state, **numbers):
    known = {"slack": 28_800.0, "reserve": 2700.0, "work_left": 80_640.0, **numbers}
    return Saw(state=state, **known)


def test_it_says_what_the_watcher_saw_and_how_long_ago(watched, time):
    write_beat(watched, None, saw("on demand"))
    time.sleep(180)
    assert said(watched).splitlines()[1] == (
        "on a machine on demand; 22 h 24 min of work left, 8 h 00 min of slack, 45 min 00 s kept "
        "in reserve (3 min 00 s ago)"
    )


@pytest.mark.parametrize("state", State)
def test_each_state_has_words_for_somebody_who_has_not_read_the_code(state):
    words = state_in_words(state.value)
    assert len(words.split()) >= 4
    assert "arming" not in words


def test_slack_that_is_used_up_is_none_and_a_run_that_is_done_has_no_numbers(watched):
    write_beat(watched, None, saw("late", slack=-600.0))
    assert "too late for the deadline, so on demand to the end; 22 h 24 min" in said(watched)
    assert "of work left, no slack, 45 min 00 s kept in reserve" in said(watched)
    write_beat(watched, None, saw("done", work_left=0.0))
    assert "\nnothing is left to do (0.0 s ago)\n" in said(watched)


def test_a_watcher_that_requests_nothing_for_the_deadline_says_so(watched):
    write_beat(watched, None)
    deadline, requests, watcher = said(watched).splitlines()
    assert deadline.startswith("deadline: ")
    assert requests.startswith("the watcher requests nothing for the deadline")
    assert watcher.startswith("watched by ")


def test_a_state_of_a_newer_pion_is_its_own_word_but_short_and_printable(watched):
    write_beat(watched, None, saw("resting"))
    assert "\nresting; 22 h 24 min of work left" in said(watched)
    write_beat(watched, None, saw("\x1b[2J" + 1000 * "x"))
    assert "\x1b" not in said(watched)
    assert len(said(watched).splitlines()[1]) < 200


# ---------------------------------------------------------------- in `pion status`


def test_status_shows_the_deadline_and_as_json_all_of_it(run, pion):
    assert "deadline: " not in pion("status", "demo")[1]
    assert json.loads(pion("status", "demo", "--json")[1])["deadline"] is None
    at = launched(run, hours=42).at
    assert "(in 1 d 1" in pion("status", "demo")[1]
    shown = json.loads(pion("status", "demo", "--json")[1])["deadline"]
    assert (shown["at"], shown["watched"], shown["met"], shown["at_risk_from"]) == (
        at,
        False,
        None,
        None,
    )
    write_beat(RunState(run.store, run.name), 2e9, saw("arming"))
    watcher = json.loads(pion("status", "demo", "--json")[1])["deadline"]["watcher"]
    assert (watcher["risk_at"], watcher["saw"]) == (2e9, saw("arming"))
    assert "requesting a machine on demand; 22 h 24 min" in pion("status", "demo")[1]


@pytest.mark.parametrize(
    ("late", "expected"), [(-3600, "met, 1 h 00 min early"), (7560, "missed by 2 h 06 min")]
)
def test_of_a_finished_run_it_says_whether_the_deadline_was_met(here, pion, late, expected):
    run = finished_run(here / "runs")
    finished_at = max(stage.at for stage in read(run).stages.values())
    record = launched(run, hours=42)
    change_deadline(run, lambda old: dataclasses.replace(record, at=finished_at - late))
    assert expected in pion("status", "demo")[1]
    assert json.loads(pion("status", "demo", "--json")[1])["deadline"]["met"] == (late < 0)
