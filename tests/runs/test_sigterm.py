"""SIGTERM at any time: finished work is saved, the process ends in time, and the next resumes."""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.support.s3_server import FaultProxy
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.whole_runs import (
    finish,
    interrupt,
    interrupt_before_row,
    kill,
    newest,
    rows_trained,
    start,
    wait_for,
    write_job,
)

GRACE = 4.0
# Seconds that a very busy machine may take to end a process whose time is up.
SLACK = 30.0

# Longer than any test waits.
LONG = {"pretrain__steps": 100_000, "sft": None, "log__every": 1}


def ended_by_sigterm(process, grace):
    """Check that the process ends with 75 and in time; return the rest of its output."""
    asked = time.monotonic()
    output = interrupt(process, signal.SIGTERM)
    assert time.monotonic() - asked < grace + SLACK
    return output


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("prepare: to do", marks=pytest.mark.soak),
        pytest.param("training a BPE", marks=pytest.mark.soak),
        pytest.param("prepare: done", marks=pytest.mark.soak),
        pytest.param("pretrain: starts", marks=pytest.mark.soak),
        "pretrain step 3",
        pytest.param("evaluate: pretrain model", marks=pytest.mark.soak),
        pytest.param("publish: starts", marks=pytest.mark.soak),
    ],
)
def test_sigterm_at_any_phase_ends_within_the_grace_and_the_next_run_continues(tmp_path, line):
    changes = {}
    if "publish" in line:
        changes = {"publish": {"to": "model"}}
    elif "evaluate" in line:
        changes = {"evaluate__final_rows": 100_000}  # much text: seconds of work
    job = write_job(tmp_path, log__every=1, **changes)
    if "evaluate" in line:
        text = tmp_path / "text" / "all.txt"
        text.write_text("\n\n".join([text.read_text()] * 20))
    process = start(job)
    wait_for(process, line)
    assert "Traceback" not in ended_by_sigterm(process, GRACE)
    finish(job)
    for stage, steps in (("pretrain", 20), ("sft", 10)):
        assert rows_trained(tmp_path, stage) == [[4 * s, 4 * s + 4] for s in range(steps)]


def test_sigterm_while_ray_starts_ends_within_the_grace_and_leaves_no_process(tmp_path):
    job = write_job(tmp_path, hardware__workers=1)
    process = start(job)
    wait_for(process, "prepare: done")
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("ray_fit" in " ".join(child.cmdline()) for child in children)
    ended_by_sigterm(process, GRACE)
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert not alive


@pytest.mark.soak
def test_sigterm_while_a_checkpoint_comes_down_ends_within_the_grace(s3, tmp_path, monkeypatch):
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
        job = write_job(tmp_path, **LONG, store=f"s3://{s3.bucket()}/runs")
        first = start(job, "checkpoint.every_steps=5")
        wait_for(first, ": saved")
        kill(first)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
        proxy.fail("GET .*safetensors", kind="delay", times=1000, seconds=60)
        process = start(job)
        wait_for(process, "pretrain: to be continued")
        # The download lasts until long after torch is imported.
        wait_until(lambda: proxy.count("GET .*safetensors"), "the checkpoint to be asked for")
        wait_until(lambda: idle(process), "the run to wait for nothing but the checkpoint")
        assert "continues after step" not in ended_by_sigterm(process, GRACE)
        proxy.clear()
        again = start(job)
        wait_for(again, "continues after step")
        kill(again)


def idle(process):
    """Return whether the process uses almost no CPU for half a second."""
    before = sum(psutil.Process(process.pid).cpu_times()[:2])
    time.sleep(0.5)
    return sum(psutil.Process(process.pid).cpu_times()[:2]) - before < 0.1


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
@pytest.mark.soak
def test_sigterm_while_the_model_is_compiled_ends_within_the_grace(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="pion-compiled-", dir="/tmp") as compiled:
        # The compiler fails where a path has a space, which the folder of these tests may have.
        monkeypatch.setenv("TMPDIR", compiled)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", compiled)
        job = write_job(tmp_path, **LONG, hardware__compile=True)
        process = start(job)
        wait_for(process, "pretrain: starts")
        wait_until(lambda: list(Path(compiled).rglob("*.cpp")), "torch to compile something")
        children = psutil.Process(process.pid).children(recursive=True)
        assert "pretrain step 1/" not in ended_by_sigterm(process, GRACE)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
        assert not alive


def test_sigterm_saves_the_last_finished_step(tmp_path):
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=10_000)
    interrupt_before_row(4 * 15, job, number=signal.SIGTERM)
    assert newest(tmp_path).step >= 15


def test_a_save_that_cannot_end_within_the_grace_leaves_the_last_durable_state(
    s3, tmp_path, monkeypatch
):
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        store = f"s3://{s3.bucket()}/runs"
        job = write_job(tmp_path, **LONG, store=store, checkpoint__grace=2.0)
        process = start(job, "checkpoint.every_steps=5")
        wait_for(process, ": saved")
        proxy.fail("PUT .*safetensors", kind="delay", times=1000, seconds=60)
        durable = newest(store).step
        wait_for(process, "pretrain step", lines=10)
        assert ": saved" not in ended_by_sigterm(process, 2.0)
        assert newest(store).step >= durable
        proxy.clear()
        again = start(job)
        wait_for(again, "continues after step")
        kill(again)
