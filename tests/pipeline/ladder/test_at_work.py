"""A rented machine owns one run while it works through those of a ladder or of a search."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput, Fenced, Interrupted, Stopped
from pipeline.cli import main
from pipeline.ladder.command import LadderOptions, run_ladder
from pipeline.ladder.run_process import RunProcesses
from pipeline.ladder.try_command import TryOptions, run_try
from pipeline.machine.rented import PAID_SINCE, rented_since
from pipeline.state.claim import Claim, claim_run
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop, clear_stops
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from tests.pipeline.ladder.fake_runs import FakeRuns, Killed, write_job
from tests.support.states import read, someone
from tests.support.waiting import join, wait_until

OPTIONS = LadderOptions(widths="0.25,0.5,1", tokens="0.25,0.5,1")
LAUNCH = "a" * 32


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job, and the environment that SkyPilot and `pion ladder --on` give to a machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PION_LAUNCH_ID", LAUNCH)
    monkeypatch.setenv("SKYPILOT_TASK_ID", "sky-managed-1")
    monkeypatch.setenv("SKYPILOT_MANAGED_JOB_ID", "7")
    monkeypatch.setenv("PION_PRICES", '{"CPU": 0.5}')
    monkeypatch.setenv("SKYPILOT_NUM_GPUS_PER_NODE", "0")
    return write_job(tmp_path)


@pytest.fixture
def run(job: str, tmp_path: Path) -> RunState:
    """The run that stands for those of the ladder."""
    return RunState(FileStore(tmp_path / "runs"), "tiny-ladder")


def climb(job: str, runs: FakeRuns, **options: Any) -> int:
    return run_ladder(job, [], LadderOptions(**{**OPTIONS.__dict__, **options}), runs)


def announce(run: RunState) -> None:
    """Leave the note of the rental of this machine."""
    note = RentalNote(at=1.0, host="desk", rented_from="me", launch_id=LAUNCH, epoch=0)
    write_rental_note(run, note, None)


def test_the_store_says_what_the_machine_does_and_when_all_is_done(
    job: str, run: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
    announce(run)
    seen: list[str] = []

    def meddle(number: int, moment: str) -> None:
        if (number, moment) == (2, "before"):
            main(["status", run.url])
            seen.append(capsys.readouterr().out)

    assert climb(job, FakeRuns(meddle=meddle)) == 0
    assert "runs      in progress at tiny-ladder-" in seen[0]
    assert "machines: rented from desk" in seen[0]
    assert "owner: pid" in seen[0]
    capsys.readouterr()
    main(["status", run.url, "--json"])
    status = json.loads(capsys.readouterr().out)
    assert status["stages"]["runs"]["state"] == "done"
    assert (status["owner"], status["next"]) == (None, None)
    (machine,) = status["cost"]["machines"]
    assert (machine["rented"], machine["price"]) == (True, 0.5)
    assert read_rental_note(run)[0] is None, "the rental is over"


def test_at_home_there_is_no_such_run(
    job: str, run: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PION_LAUNCH_ID", "SKYPILOT_TASK_ID"):
        monkeypatch.delenv(name)
    assert climb(job, FakeRuns()) == 0
    assert run.read() is None


def test_the_next_machine_continues_after_a_killed_one(job: str, run: RunState) -> None:
    def kill(number: int, moment: str) -> None:
        if (number, moment) == (4, "after"):
            raise Killed

    first, second = FakeRuns(meddle=kill), FakeRuns()
    with pytest.raises(Killed):
        climb(job, first)
    assert climb(job, second) == 0
    assert sorted({*first.started, *second.started}) == sorted(first.started + second.started)
    assert len(read(run).claims) == 2


def test_a_request_to_stop_ends_the_ladder_after_the_run_has_saved(
    job: str, run: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[Claim] = []

    def claim(*arguments: Any, **options: Any) -> Claim:
        claims.append(claim_run(*arguments, **options))
        return claims[-1]

    def ask(number: int, moment: str) -> None:
        if (number, moment) == (2, "before"):
            ask_stop(run, "pion stop")
            claims[0].heartbeat.beat()

    monkeypatch.setattr("pipeline.ladder.at_work.claim_run", claim)
    runs = FakeRuns(meddle=ask)
    announce(run)
    with pytest.raises(Stopped, match=r"Stopped by request \(pion stop by .*Every finished run is"):
        climb(job, runs)
    assert len(runs.started) == 2
    assert read(run).owner is None
    assert read_rental_note(run)[0] is None, "nothing continues this rental"
    with pytest.raises(Stopped, match=r"Nothing was started.*rent again with the same command"):
        climb(job, runs)
    assert len(runs.started) == 2
    clear_stops(run)  # as a launch by a person does
    assert climb(job, runs) == 0


def test_a_machine_that_another_launch_has_replaced_stops(job: str, run: RunState) -> None:
    def replace(number: int, moment: str) -> None:
        if (number, moment) == (2, "before"):
            claim_run(run, someone(launch_id="b" * 32), take_over=True)

    runs = FakeRuns(meddle=replace)
    with pytest.raises(Fenced, match="Run tiny-ladder was taken over by"):
        climb(job, runs)
    assert len(runs.started) == 2


def test_a_store_that_is_down_between_two_runs_is_an_interruption(
    job: str, run: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> Any:
        raise StoreError("read", "HEAD.json", "no route to host", outage=True)

    def fail(number: int, moment: str) -> None:
        if (number, moment) == (2, "after"):
            monkeypatch.setattr("pipeline.ladder.look.result_in", down)

    with pytest.raises(Interrupted, match=r"no route to host.*Every finished run is kept"):
        climb(job, FakeRuns(meddle=fail))


def test_the_name_of_an_ordinary_run_is_not_taken(job: str, run: RunState) -> None:
    claim = claim_run(run, someone())
    claim.finish_stage("prepare", "d", {})
    claim.release()
    with pytest.raises(BadInput, match=r"tiny-ladder is an ordinary run.*name=NAME"):
        climb(job, FakeRuns())


def test_an_ordinary_run_does_not_take_the_name(
    job: str, run: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
    climb(job, FakeRuns())
    capsys.readouterr()
    assert main(["run", job, "name=tiny-ladder"]) == 2
    assert "stands for the rented runs of a ladder" in capsys.readouterr().err


def test_a_search_has_its_own_run(job: str, tmp_path: Path) -> None:
    options = TryOptions(varied=("pretrain.lr=1e-3,2e-3",), seeds=2)
    losses = FakeRuns(loss=lambda job, step: job.section("pretrain").lr)
    assert run_try(job, [], options, losses) == 0
    store = FileStore(tmp_path / "runs")
    found = [RunState(store, name).read() for name in store.folders() if "-try-" in name]
    (head,) = [head for head in found if head is not None and head.runs is not None]
    assert head.runs is not None
    assert head.runs.result == {"finished": True}


# ---------------------------------------------------------------- its processes

STAND_IN = """#!{python} -S
import os, signal, sys, time
from pathlib import Path

folder = Path({folder!r})
with (folder / "paid").open("a") as file:
    print(os.environ.get("PION_PAID_SINCE", "-"), file=file)
def leave(number, frame):
    with (folder / "signals").open("a") as file:
        print(number, file=file)
    sys.exit(75)
while "starts" in sys.argv and signal.SIGINT not in signal.sigpending():
    (folder / "ready").touch()  # before it can hear a signal
    time.sleep(0.001)
signal.signal(signal.SIGINT, signal.SIG_DFL if "ending" in sys.argv else leave)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
(folder / "ready").touch()
while "waits" in sys.argv:
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace `pion run` by a small program that notes what it gets."""
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def test_each_run_pays_for_the_machine_from_the_end_of_the_one_before(
    job: str, stand_in: Path
) -> None:
    before = time.time()
    processes = RunProcesses(to_stderr=False)
    assert [processes([]) for _ in range(3)] == [0, 0, 0]
    first, second, third = (stand_in / "paid").read_text().split()
    assert first == "-", "the first run pays for the boot"
    assert before < float(second) < float(third) < time.time()


def test_at_home_nothing_is_paid_between_runs(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = RunProcesses(to_stderr=False)
    processes([])
    processes([])
    assert (stand_in / "paid").read_text().split() == ["-", "-"]


def test_a_rented_machine_is_paid_since_the_moment_that_it_is_told() -> None:
    now = time.time()
    assert rented_since(now, {PAID_SINCE: str(now - 9000)}) == now - 9000
    assert rented_since(now, {PAID_SINCE: str(now + 9)}) <= now, "a clock has jumped"
    assert rented_since(now, {PAID_SINCE: "soon"}) <= now


def test_a_run_is_asked_to_save_only_once(stand_in: Path) -> None:
    processes = RunProcesses(to_stderr=False)
    processes.interrupt()  # nothing runs yet
    asking = threading.Thread(target=_interrupt, args=(processes, stand_in))
    asking.start()
    assert processes(["waits"]) == 75
    join(asking)
    assert (stand_in / "signals").read_text().split() == ["2"]


def test_a_run_that_only_starts_hears_that_it_is_to_end(stand_in: Path) -> None:
    processes = RunProcesses(to_stderr=False)
    asking = threading.Thread(target=_interrupt, args=(processes, stand_in))
    asking.start()
    assert processes(["waits", "starts"]) == 75
    join(asking)


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in the instant in which a process has started."""
    start = subprocess.Popen

    def start_and_press(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_press)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_instant_in_which_a_run_starts_reaches_it(stand_in: Path) -> None:
    assert RunProcesses(to_stderr=False)(["waits"]) == 75


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_python_of_a_run_ends_is_an_interruption_and_no_failure(
    stand_in: Path,
) -> None:
    with pytest.raises(Interrupted, match="Every finished run is kept"):
        RunProcesses(to_stderr=False)(["waits", "ending"])


def _interrupt(processes: RunProcesses, folder: Path) -> None:
    wait_until((folder / "ready").exists, "the run")
    for _ in range(3):
        processes.interrupt()
