"""`pion status`: what a run's store says about it, for a person and as JSON."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import yaml

from pipeline.state.claim import claim_run
from pipeline.state.head import SkippedRows
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import EventLog
from tests.support.finished_run import make_run
from tests.support.jobs import tiny_dict


def test_status_of_a_run_is_read_from_its_store_alone(here, pion):
    claim = claim_run(make_run(here / "runs"), Owner.me())
    claim.finish_stage("reinforce", "d", {"held_out_loss": -0.25, "held_out_reward": 0.25}, None)
    claim.release()
    code, out, _ = pion("status", "demo")
    assert code == 0
    assert "pretrain  done at step 20" in out
    assert "UTC, held-out reward 0.250\n" in out
    assert "evaluate  not started" in out
    assert "newest checkpoint: sft step 5" in out
    assert "owner: nobody (released)" in out


def test_status_shows_the_stages_that_the_runs_job_has(here, pion):
    run = make_run(here / "runs", saves=[("pretrain", 10)], finished=[])
    assert "sft       not started" in pion("status", "demo")[1]  # the job is not recorded
    run.write_job("d1", yaml.safe_dump(tiny_dict(sft=None)))
    claim = claim_run(run, Owner.me())
    claim.set_job("d1")
    claim.release()
    _, out, _ = pion("status", "demo")
    assert "pretrain  in progress at step 10" in out
    assert "evaluate  not started" in out
    assert "sft" not in out
    assert "publish" not in out


def test_status_names_the_owner_and_what_it_last_said(here, pion):
    run = make_run(here / "runs", release=False)
    beat = {"epoch": 1, "owner": None, "at": 0.0, "beat": 1}
    beat["status"] = {"stage": "sft", "step": 7, "steps": 60, "loss": 2.5, "tokens_per_second": 9e3}
    run.store.write(run.key("owner/1.json"), json.dumps(beat).encode())
    _, out, _ = pion("status", "demo")
    assert f"owner: pid {os.getpid()} on " in out
    assert ", running, heartbeat" in out
    assert "; sft step 7/60, loss 2.5000, 9,000 tokens/s" in out


def test_status_of_a_run_that_was_killed_says_what_is_safe_and_how_to_resume(here, pion):
    run = make_run(here / "runs")
    dead = dataclasses.replace(Owner.me(), session="another", pid_start=1)
    claim = claim_run(run, dead)
    assert "To resume, run: pion run JOB" in pion("status", "demo")[1]
    log = EventLog(run.store, run.name, claim.epoch)
    log.append("process", host=dead.host, job="jobs/demo.yaml sft.lr=2e-3")
    log.flush()
    _, out, _ = pion("status", "demo")
    assert ", dead, " in out
    safe = "Nothing that was committed is lost."
    assert f"{safe} To resume, run: pion run jobs/demo.yaml sft.lr=2e-3\n" in out


def test_status_as_json_can_be_read_by_a_program(here, pion):
    make_run(here / "runs", finished=["pretrain"])
    status = json.loads(pion("status", "demo", "--json")[1])
    assert status["stages"]["pretrain"]["state"] == "done"
    assert status["stages"]["sft"] | {"at": 0} == {
        "state": "begun",
        "at": 0,
        "digest": "digest-sft",
        "step": 5,
    }
    assert status["owner"] is None
    (only,) = json.loads(pion("status", "--json")[1])
    assert only["run"] == "demo"


def test_status_of_several_runs_is_printed_one_after_another(here, pion):
    for name in ("first", "second"):
        make_run(here / "runs", name, saves=[])
    out = pion("status", "first", "second")[1]
    assert out.index("first in ") < out.index("second in ")
    found = json.loads(pion("status", "first", "second", "--json")[1])
    assert [status["run"] for status in found] == ["first", "second"]


def test_status_without_a_run_lists_all_of_them(here, pion):
    assert "no runs in" in pion("status")[1]
    make_run(here / "runs", "first")
    make_run(here / "runs", "second", saves=[])
    first, second = pion("status")[1].splitlines()
    assert first.startswith("first ")
    assert "done: pretrain, sft" in first
    assert second.startswith("second  done: nothing; newest checkpoint: none")


def test_status_shows_requests_to_stop_money_and_rows_left_out(here, pion):
    run = make_run(here / "runs")
    status = json.loads(pion("status", "demo", "--json")[1])
    assert (status["stop"], status["skipped"], status["notes"]) == (None, {}, [])
    claim = claim_run(run, Owner.me(), price=0.5)
    claim.commit(
        lambda head: head.with_skipped(
            "sft", SkippedRows(16, 20, 5, 2, "digest-sft", "loss is nan", 0.0)
        )
    )
    claim.commit(lambda head: head)
    run.store.write(run.key("requests/0.json"), b"not a request")
    assert pion("stop", "demo")[0] == 0
    _, out, _ = pion("status", "demo")
    assert "asked to stop: pion stop by " in out
    assert "left out: sft rows 16 to 19 (step 5: loss is nan)" in out
    assert "a request was ignored: " in out
    status = json.loads(pion("status", "demo", "--json")[1])
    assert status["stop"]["reason"] == "pion stop"
    assert 0 < status["spent"]["dollars"] < status["spent"]["hours"]


@pytest.mark.parametrize(
    "command", [("data", "."), ("data", ".", "--prune"), ("status", "./x"), ("rm", "./x", "--yes")]
)
def test_a_folder_that_is_no_store_is_not_walked_through(here, pion, command, monkeypatch):
    (here / "x" / "usr" / "lib").mkdir(parents=True)
    read, scandir = [], os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: (read.append(Path(path).name), scandir(path))[1]
    )
    _, output, error = pion(*command)
    assert "No runs in" in output + error
    assert "usr" not in read


def test_runs_of_a_search_are_one_line(here, pion):
    for name in ("demo", "demo-try-lr=1-a", "demo-try-lr=2-b"):
        make_run(here / "runs", name, saves=[("pretrain", 10)])
    lines = pion("status")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["demo", "demo-try-…:"]
    assert "2 runs of `pion try`" in lines[1]
