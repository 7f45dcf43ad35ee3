"""An owner that is stopped (SIGSTOP, a frozen virtual machine) while another process takes over."""

import signal
import time
from pathlib import Path

import pytest

from pion.errors import Fenced
from pipeline.state import claim as claiming
from pipeline.state import run_state
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.stores.clock import Clock
from tests.support.clock import FakeClock
from tests.support.states import read, someone
from tests.support.waiting import read_until, rest_of, wait_until
from tests.support.whole_runs import (
    RUN_SECONDS,
    ends_with,
    final_weights,
    head_of,
    wait_for,
    write_job,
)
from tests.support.whole_runs import start as start_run

DAY = 86_400.0
# Above the time for which an owner may be silent.
PAUSE_SECONDS = 180.0

OWNER = """
import sys
from pion.errors import Fenced
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.owner import Owner
from pipeline.state.stores import FileStore
claim = claim_run(RunState(FileStore(sys.argv[1]), "demo"), Owner.me())
claim.set_job("old")
print("owns", flush=True)
sys.stdin.readline()
try:
    claim.set_job("old again")
except Fenced as fenced:
    print(fenced)
    sys.exit(fenced.exit_code)
"""


def test_an_owner_that_was_stopped_and_continued_writes_nothing_more(tmp_path, start, monkeypatch):
    monkeypatch.setattr(run_state, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(claiming, "_POLL_SECONDS", 0.05)
    store = FileStore(tmp_path / "runs")
    owner = start(OWNER, store.folder)
    read_until(owner, "owns")
    owner.send_signal(signal.SIGSTOP)
    said = []
    claim = claim_run(RunState(store, "demo"), Owner.me(), unattended=True, say=said.append)
    assert "no sign of life" in claim.reason
    assert f"pid {owner.pid}" in said[0]
    claim.set_job("new")
    owner.send_signal(signal.SIGCONT)
    assert "was taken over by" in rest_of(owner)  # closes its input, so that it commits
    assert owner.returncode == Fenced.exit_code
    head = read(RunState(store, "demo"))
    assert (head.job, head.epoch) == ("new", claim.epoch)


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_jumps_while_the_owner_is_paused(tmp_path, jump):
    fake, ahead = FakeClock(), [0.0]
    clock = Clock(lambda: fake.time + ahead[0], lambda: fake.time, fake.sleep)
    paused = claim_run(RunState(FileStore(tmp_path), "demo", clock), someone(host="paused"))
    paused.heartbeat.beat()
    ahead[0] = jump
    began = fake.time
    other = RunState(FileStore(tmp_path), "demo", clock)
    claim = claim_run(other, someone(host="other"), unattended=True)
    assert 60 <= fake.time - began < 65  # a jump is neither a sign of life nor silence
    with pytest.raises(Fenced, match="taken over by"):
        paused.set_job("old")
    paused.heartbeat.beat()
    assert other.heartbeat(paused.epoch) is not None
    head = claim.set_job("new")
    assert (head.epoch, head.job) == (2, "new")
    assert head.spent.hours < 0.1


@pytest.mark.soak
def test_a_whole_run_is_stopped_for_three_minutes_while_another_takes_over(tmp_path):
    changes = {"sft": None, "pretrain__steps": 400}
    job = write_job(tmp_path, **changes)
    old = start_run(job)
    wait_for(old, "first step")
    old.send_signal(signal.SIGSTOP)
    end = time.monotonic() + PAUSE_SECONDS
    new = start_run(job)
    wait_for(new, "taking the run over: no sign of life for 60 s")
    wait_until(lambda: time.monotonic() > end, "the end of three minutes", seconds=RUN_SECONDS)
    old.send_signal(signal.SIGCONT)
    output = ends_with(3, old)
    assert "was taken over by" in output
    ends_with(0, new)
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    ends_with(0, start_run(write_job(unbroken, **changes)))
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert head_of(tmp_path).owner is None


# `pion run` that stops itself in one stage.
STOPS_IN = """
import os, signal, sys
from pipeline.cli import main
import {module} as module
original = module.{function}
def stopped(*arguments, **named):
    os.kill(os.getpid(), signal.SIGSTOP)
    return original(*arguments, **named)
module.{function} = stopped
sys.exit(main())
"""
STAGES = {
    "prepare": ("pipeline.stages.prepare", "_finish"),
    "evaluate": ("pipeline.stages.evaluate", "evaluate_run"),
    "publish, while it checks": ("pion.formats.verify", "verify_export"),
    "publish, while it writes": ("pion.formats.export", "replace_folder"),
}


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_a_whole_run_is_stopped_in_any_stage_while_another_takes_over(stage, tmp_path, whole):
    module, function = STAGES[stage]
    job = write_job(tmp_path, publish={"to": str(tmp_path / "model")})
    old = start_run(job, program=STOPS_IN.format(module=module, function=function))
    wait_until(lambda: _is_stopped(old.pid), f"the stop in {stage}", seconds=RUN_SECONDS)
    ends_with(0, start_run(job, "--take-over"))
    published = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    head = head_of(tmp_path)
    old.send_signal(signal.SIGCONT)
    assert "was taken over by" in ends_with(3, old)
    assert head_of(tmp_path) == head
    assert final_weights(tmp_path) == final_weights(whole())
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == published


def _is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
