"""How Ray's process ends: when it is told to, and why, by what it has written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pipeline.workers.lifeline import Lifeline
from pipeline.workers.ray_workers import RAY_ADDRESS, RayWorkers, last_words
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


def test_a_full_memory_is_the_reason_whatever_ray_writes_afterwards() -> None:
    said = last_words(MEMORY_FULL)
    assert said.startswith("this machine's memory was full (22.40GB used / 23.54GB limit)")
    assert "hardware.micro_batch" in said


def test_else_it_is_the_last_line_without_its_colors() -> None:
    assert last_words(f"first\n{BLUE}(pid=1){PLAIN} Killed\n\n") == "(pid=1) Killed"


def test_a_process_that_wrote_nothing_gave_no_reason() -> None:
    assert last_words(f" {PLAIN}\n") == ""


# Stands for Ray Train, which takes SIGINT as the order to end the group and forget it, also where a
# shell has started all in the background. SIGINT is then ignored, and sh could not trap it.
ENDS_ON_SIGINT = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(7))
print("ready", flush=True)
time.sleep(600)
"""


def test_a_group_whose_workers_hang_ends_in_order_and_none_starts_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(workers: RayWorkers) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", ENDS_ON_SIGINT], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    monkeypatch.delenv(RAY_ADDRESS, raising=False)
    monkeypatch.setattr(RayWorkers, "_start_ray_fit", start)
    request: Any = None
    workers = RayWorkers(request, (2, 16))
    workers.end_in_order()
    assert workers._process.returncode == 7, "Ray keeps its room"
    late = Lifeline(workers.lifeline.address, 0)
    wait_until(lambda: late.stop_requested, "the late worker was asked to stop")
    late.close()
    workers.close()
