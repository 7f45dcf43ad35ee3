"""How Ray's process ends: when it is told to, and why, by what it has written."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.workers.lifeline import Lifeline
from pipeline.workers.ray_workers import (
    LONGEST_SOCKET,
    RAY_ADDRESS,
    RAY_FOLDER,
    RayWorkers,
    last_words,
    private_environment,
    session_folder,
)
from tests.support.waiting import wait_until

BLUE, PLAIN = "\x1b[36m", "\x1b[0m"
# As written by Ray 2.60 on a machine whose memory other programs had filled.
MEMORY_FULL = f"""\
{BLUE}(TrainController pid=8551){PLAIN} )
{BLUE}(TrainController pid=8551){PLAIN} 3 worker(s) were killed due to the node running low on \
memory. Memory on the node (IP: 127.0.0.1, ID: bdb2cd79d357) was 22.40GB used / 23.54GB limit \
(0.951391)
{BLUE}(TrainController pid=8551){PLAIN} OOM kill reason: Memory usage 24060178432B exceeded
{BLUE}(PlacementGroupCleaner pid=8799){PLAIN} Failed to query Ray Train Controller actor state.
"""


def test_a_full_memory_is_the_reason_whatever_ray_writes_afterwards():
    said = last_words(MEMORY_FULL)
    assert said.startswith("this machine's memory was full (22.40GB used / 23.54GB limit)")
    assert "hardware.micro_batch" in said


@pytest.mark.parametrize(
    ("written", "reason"),
    [(f"first\n{BLUE}(pid=1){PLAIN} Killed\n\n", "(pid=1) Killed"), (f" {PLAIN}\n", "")],
)
def test_else_it_is_the_last_line_without_its_colors_if_there_is_one(written, reason):
    assert last_words(written) == reason


# Stands for Ray Train, which takes SIGINT as the order to end the group and forget it, also where a
# shell has started all in the background. SIGINT is then ignored, and sh could not trap it.
ENDS_ON_SIGINT = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(7))
print("ready", flush=True)
time.sleep(600)
"""


def test_a_group_whose_workers_hang_ends_in_order_and_none_starts_after_it(monkeypatch):
    def start(workers):
        process = subprocess.Popen([sys.executable, "-c", ENDS_ON_SIGINT], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    monkeypatch.setattr(RayWorkers, "_start_ray_fit", start)
    request = None
    workers = RayWorkers(request, (2, 16))
    workers.end_in_order()
    assert workers._process.returncode == 7, "Ray keeps its room"
    late = Lifeline(workers.lifeline.address, 0)
    wait_until(lambda: late.stop_requested, "the late worker was asked to stop")
    late.close()
    workers.close()


# ---------------------------------------------------------------- nobody else may use it


SOCKET = f"{RAY_FOLDER}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def test_each_session_has_another_token_and_no_token_of_the_environment():
    given = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "known",
        "RAY_AUTH_TOKEN_PATH": "/known",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "HOME": "/root",
    }
    first, second = private_environment(given), private_environment(given)
    assert len(bytes.fromhex(first["RAY_AUTH_TOKEN"])) == 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN_PATH" not in first
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert first["HOME"] == "/root"
    assert given["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("length", [4, 20, 23, 24, 39, 40, 200])
def test_rays_sockets_fit_below_any_temporary_folder(length, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as short:
        folder = Path(short)
        if length > 4:
            folder = Path(short, "x" * (length - len(short) - 1))
            folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        session = session_folder()
        try:
            assert len(str(session / SOCKET)) <= LONGEST_SOCKET
            assert session.parent == (folder if length <= 23 else Path("/tmp"))
            assert stat.S_IMODE(session.stat().st_mode) == 0o700
        finally:
            session.rmdir()


def test_a_temporary_folder_that_is_not_there_is_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/no-such")
    with pytest.raises(BadInput, match=r"/no-such can't be written.*TMPDIR.*at most 23 bytes"):
        session_folder()
