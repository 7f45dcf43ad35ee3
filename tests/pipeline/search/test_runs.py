"""The runs of a search share a cap. They are processes, which hear its signals."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext

import psutil
import pytest

from pion.errors import Interrupted, Stopped
from pipeline.job import Budget
from pipeline.search.runs import RunProcesses
from pipeline.search.search import SearchRecord, budget_left, refuse_beyond
from pipeline.state.head import Spent
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.search.fake_runs import ROWS
from tests.support.waiting import kill_tree, read_until, rest_of, wait_until
from tests.support.whole_runs import open_process, write_job

SECONDS = 120.0
PARENT = """
import sys
from pipeline.cli import main
sys.exit(main(["try", sys.argv[1], "--vary", "pretrain.lr=1e-3,2e-3", "--seeds", "1"]))
"""


def test_a_run_gets_what_the_others_leave_and_at_most_what_its_job_allows():
    cap, others = SearchRecord(hours=2.0, dollars=10.0), Spent(0.5, 4.0, 1.0)
    assert budget_left(cap, Budget(), others) == {"budget.hours": 1.5, "budget.dollars": 6.0}
    job = Budget(hours=1.0, dollars_per_hour=1.0)
    assert budget_left(cap, job, others) == {"budget.hours": 1.0, "budget.dollars": 6.0}
    assert not budget_left(SearchRecord(), job, others)


@pytest.mark.parametrize("row", ROWS["caps"], ids=str)
def test_a_run_that_would_exceed_the_cap_is_refused(row):
    refused = pytest.raises(Stopped, match=row["says"]) if "says" in row else nullcontext()
    spent = Spent(row["spent"], 2 * row["spent"])
    with refused:
        refuse_beyond(SearchRecord(**row["cap"]), spent, "a", row["hours"], 2.0)


# ---------------------------------------------------------------- their processes


@contextmanager
def searching(folder):
    """Start a search whose first run takes long, and wait until it trains."""
    job = write_job(folder, sft=None, pretrain__steps=1_000_000, log__every=1)
    process = open_process([sys.executable, "-u", "-c", PARENT, str(job)], folder)
    try:
        read_until(process, "pretrain step 3/", seconds=SECONDS)
        yield process
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait(SECONDS)


def saved_step(folder):
    """Return the step that the only run has saved, which nobody owns any more."""
    (name,) = [n for n in FileStore(folder / "runs").folders() if n.startswith("tiny-try-")]
    run = RunState(FileStore(folder / "runs"), name)

    def released():
        head = run.read()
        return head is not None and head.owner is None

    wait_until(released, "the run to be released")
    head = run.read()
    assert head is not None
    return head.checkpoints[0].step


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_ends_the_search(tmp_path, number):
    with searching(tmp_path) as process:
        process.send_signal(number)
        output = rest_of(process, seconds=SECONDS)
    assert process.returncode == 75, output
    assert "was interrupted. Every finished run is kept" in output
    assert "Traceback" not in output
    assert saved_step(tmp_path) >= 3


@pytest.mark.soak
def test_the_run_of_a_killed_search_saves_and_ends(tmp_path):
    with searching(tmp_path) as process:
        (run,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait(SECONDS)
        wait_until(lambda: not run.is_running() or run.status() == "zombie", "the run to end")
    assert saved_step(tmp_path) >= 3


STAND_IN = """#!{python} -S
import os, signal, sys, time
from pathlib import Path

folder = Path({folder!r})
with (folder / "paid").open("a") as file:
    print(os.environ.get("PION_PAID_SINCE", "-"), file=file)
while "starts" in sys.argv and signal.SIGINT not in signal.sigpending():
    time.sleep(0.001)  # before it can hear a signal
signal.signal(signal.SIGINT, signal.SIG_DFL if "ending" in sys.argv else lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
while "waits" in sys.argv:
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replace `pion run` by a small program that notes what it gets."""
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


@pytest.fixture
def ctrl_c(stand_in, monkeypatch):
    """Press Ctrl-C in the instant in which a process has started."""
    start = subprocess.Popen

    def start_and_press(*arguments, **options):
        process = start(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_press)


def test_each_run_pays_for_a_rented_machine_from_the_end_of_the_one_before(stand_in, monkeypatch):
    """And at home nothing is paid between runs."""
    before, at_home = time.time(), RunProcesses(to_stderr=False)
    assert [at_home([]) for _ in range(2)] == [0, 0]
    monkeypatch.setenv("SKYPILOT_TASK_ID", "sky-managed-1")
    rented = RunProcesses(to_stderr=False)
    assert [rented([]) for _ in range(3)] == [0, 0, 0]
    *boots, second, third = (stand_in / "paid").read_text().split()
    assert boots == ["-", "-", "-"], "the first run pays for the boot"
    assert before < float(second) < float(third) < time.time()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("words", [["waits"], ["waits", "starts"]])
def test_ctrl_c_in_the_instant_in_which_a_run_starts_reaches_it(words):
    assert RunProcesses(to_stderr=False)(words) == 75


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_python_of_a_run_ends_is_an_interruption_and_no_failure():
    with pytest.raises(Interrupted, match="Every finished run is kept"):
        RunProcesses(to_stderr=False)(["waits", "ending"])
