"""The processes that a killed driver leaves behind are killed: real processes, real SIGKILL."""

import signal
import subprocess
import sys

import psutil

from pipeline.workers.reaper import session_processes
from tests.support.waiting import read_until, wait_until

DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper
folder = Path(sys.argv[1])
os.environ[SESSION_VARIABLE] = str(folder)
start_reaper(folder)
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleeper, start_new_session=True)
# A child that shows neither command line nor environment, as Ray's renamed workers do.
hidden = "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], env={}); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", hidden], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def test_every_process_of_a_sigkilled_drivers_session_ends(tmp_path):
    folder = tmp_path / "session"
    folder.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    read_until(driver, "ready")

    def below():
        return psutil.Process(driver.pid).children(recursive=True)

    # Its reaper, its two children, and the renamed grandchild.
    wait_until(lambda: len(below()) == 4, "all of them to run")
    processes = below()
    assert len(session_processes(str(folder))) >= 3
    driver.send_signal(signal.SIGKILL)
    driver.wait(60)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    assert not session_processes(str(folder))
    assert not folder.exists()


def test_processes_of_another_session_are_left_alone(tmp_path):
    folder, other = tmp_path / "session", tmp_path / "other-session"
    folder.mkdir()
    bystander = subprocess.Popen(["sleep", "600"], env={"PION_RAY_SESSION": str(other)})
    code = (
        "import sys; from pathlib import Path; from pipeline.workers.reaper import start_reaper; "
    )
    # Not as an argument: a driver that names the folder may be killed before its own exit is over.
    code += "start_reaper(Path(sys.stdin.read()))"
    subprocess.run(
        [sys.executable, "-c", code], input=str(folder), text=True, check=True, timeout=60
    )
    wait_until(lambda: not folder.exists(), "the reaper to be done")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait(60)
