"""The processes of a ladder's runs: what each pays of a machine, and which signals reach it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pion.errors import Interrupted
from pipeline.ladder.run_process import RunProcesses

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


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace `pion run` by a small program that notes what it gets."""
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in the instant in which a process has started."""
    start = subprocess.Popen

    def start_and_press(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_press)


def test_each_run_pays_for_a_rented_machine_from_the_end_of_the_one_before(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYPILOT_TASK_ID", "sky-managed-1")
    before, processes = time.time(), RunProcesses(to_stderr=False)
    assert [processes([]) for _ in range(3)] == [0, 0, 0]
    first, second, third = (stand_in / "paid").read_text().split()
    assert first == "-", "the first run pays for the boot"
    assert before < float(second) < float(third) < time.time()


def test_at_home_nothing_is_paid_between_runs(stand_in: Path) -> None:
    processes = RunProcesses(to_stderr=False)
    assert [processes([]) for _ in range(2)] == [0, 0]
    assert (stand_in / "paid").read_text().split() == ["-", "-"]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("words", [["waits"], ["waits", "starts"]])
def test_ctrl_c_in_the_instant_in_which_a_run_starts_reaches_it(words: list[str]) -> None:
    assert RunProcesses(to_stderr=False)(words) == 75


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_python_of_a_run_ends_is_an_interruption_and_no_failure() -> None:
    with pytest.raises(Interrupted, match="Every finished run is kept"):
        RunProcesses(to_stderr=False)(["waits", "ending"])
