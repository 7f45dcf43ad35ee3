"""`pion stop` asks, says what will happen, and with --wait waits until the run has stopped."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from pion.errors import PionError
from pipeline.commands.stop import stop_run
from pipeline.state.claim import claim_run
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.owner import Owner
from pipeline.state.stores import FileStore
from tests.support.finished_run import make_run
from tests.support.light_run import light_run
from tests.support.states import read as head_of
from tests.support.states import someone


@pytest.fixture
def run(tmp_path, time):
    """A released run with work left."""
    return light_run(FileStore(tmp_path), clock=time.clock())


def finish(run):
    claim = claim_run(run, Owner.me())
    for stage in ("sft", "evaluate"):
        claim.finish_stage(stage, f"digest-{stage}", {})
    claim.release()


def dead_owner():
    """An owner whose process on this machine has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)
    return dataclasses.replace(Owner.me(), session="another", pid=process.pid, pid_start=1)


def ask(run, *, wait=False):
    said = []
    stop_run(run, head_of(run), wait=wait, say=said.append)
    return "\n".join(said)


def test_the_owner_is_named_with_what_it_will_do(run):
    claim_run(run, someone(host="host-a", pid=77))
    said = ask(run)
    assert "pid 77 on host-a" in said
    assert (
        "checks for requests every 20 s (no heartbeat yet). It will save and exit with code 4"
        in said
    )
    assert "managed restarts obey it, and a `pion run` that you start yourself clears it" in said
    assert pending_stop(run) is not None


def test_a_run_nobody_owns_is_said_to_be_so_and_stays_stopped(run):
    said = ask(run, wait=True)
    assert "Nobody owns demo, so nothing is running now" in said
    assert "A rental may still be booting" in said
    assert f"(`pion rentals {run.store.url}/demo`). The request stays" in said
    assert pending_stop(run) is not None


def test_a_dead_owner_is_not_waited_for(run):
    claim_run(run, dead_owner())
    assert "is dead, so nothing is running now" in ask(run, wait=True)
    assert pending_stop(run) is not None


def test_a_finished_run_is_left_alone(run):
    finish(run)
    assert ask(run) == "demo is finished: there is nothing to stop."
    assert pending_stop(run) is None


def test_waiting_ends_when_the_run_is_released_and_says_what_is_saved(run, time):
    claim = claim_run(run, someone())
    later = time.time + 7
    time.during_sleep = lambda: claim.release() if time.time >= later else None
    said = ask(run, wait=True)
    assert "demo has stopped. The newest checkpoint, sft step 5, was saved" in said
    assert time.time < later + 5


def test_waiting_follows_a_run_from_one_claim_to_the_next(run, time):
    owner = someone()
    claim_run(run, owner)
    start = time.time
    claims = []

    def live():
        if not claims and time.time - start > 50:
            claims.append(claim_run(run, owner))  # its workers make another claim
        elif claims and time.time - start > 100:  # longer than an owner may be silent
            claims.pop().release()

    time.during_sleep = live
    assert "demo has stopped" in ask(run, wait=True)


def test_a_run_that_finishes_first_is_not_stopped_by_the_request_later(run, time):
    owner = someone()
    claim = claim_run(run, owner)

    def ends():
        if head_of(run).owner is not None:
            for stage in ("sft", "evaluate"):
                claim.finish_stage(stage, "digest", {})
            claim.release()

    time.during_sleep = ends
    assert "demo finished its last stage before it saw the request" in ask(run, wait=True)
    assert pending_stop(run) is None


def test_waiting_for_an_owner_that_dies_fails_and_says_what_is_safe(run, time):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    owner = dataclasses.replace(Owner.me(), session="s", pid=process.pid, pid_start=int(stat[19]))
    claim_run(run, owner)

    def dies():
        process.kill()
        process.communicate(timeout=60)

    time.during_sleep = dies
    with pytest.raises(PionError, match=r"died before it released demo\. The newest"):
        ask(run, wait=True)
    assert pending_stop(run) is not None


def test_waiting_for_an_owner_without_a_sign_of_life_ends_after_a_minute(run, time):
    claim_run(run, someone(host="gone"))
    start = time.time
    with pytest.raises(PionError, match=r"on gone, has shown no sign of life for 1 min 00 s"):
        ask(run, wait=True)
    assert 60 <= time.time - start < 65


# ---------------------------------------------------------------- the command


def test_stop_of_a_run_nobody_owns_says_so(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("stop", "demo", "--wait")
    assert code == 0
    assert "Nobody owns demo" in out
