"""SIGTERM, stop requests, budgets, dying helpers and hangs: saved, said, and gone in time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.state.metrics import read_events
from pipeline.state.requests import ask_stop
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.runs.test_resume import (
    final_weights,
    finish,
    head_of,
    rows_trained,
    start,
    wait_for,
    write_job,
)
from tests.support.s3_server import FaultProxy, S3Server

GRACE = 4.0
SLACK = 3.0
"""What a busy machine may take to end a process whose time is up."""

LONG: dict[str, Any] = {"pretrain__steps": 400, "sft": None, "log__every": 1}


@pytest.mark.parametrize(
    ("line", "delay"),
    [
        ("prepare: to do", 0.0),
        ("prepare: to do", 0.6),
        ("prepare: done", 0.5),
        ("pretrain: starts", 0.0),
        ("pretrain step 3", 0.0),
        ("evaluate: starts", 0.1),
        ("publish: starts", 1.0),
    ],
)
def test_sigterm_at_any_phase_ends_within_the_grace_and_the_next_run_goes_on(
    tmp_path: Path, line: str, delay: float
) -> None:
    changes: dict[str, Any] = {}
    if "publish" in line:
        changes = {"publish": {"to": str(tmp_path / "model")}}
    elif "evaluate" in line:
        changes = {"evaluate__final_rows": 100_000}  # of much text: seconds of work
    job = write_job(tmp_path, log__every=1, **changes)
    if "evaluate" in line:
        text = tmp_path / "text" / "all.txt"
        text.write_text("\n\n".join([text.read_text()] * 20))
    process = start(job)
    wait_for(process, line, lines=1)
    time.sleep(delay)
    output = ended_by_sigterm(process, GRACE)
    assert "Traceback" not in output
    finish(job)
    for stage, steps in (("pretrain", 20), ("sft", 10)):
        assert rows_trained(tmp_path, stage) == [[4 * s, 4 * s + 4] for s in range(steps)]


def test_sigterm_while_ray_starts_ends_within_the_grace_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    job = write_job(tmp_path, hardware__workers=1)
    process = start(job)
    wait_for(process, "prepare: done", lines=1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("ray_fit" in " ".join(child.cmdline()) for child in children)
    ended_by_sigterm(process, GRACE)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_sigterm_while_a_checkpoint_comes_down_ends_within_the_grace(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
        job = write_job(tmp_path, **LONG, store=f"s3://{s3.bucket()}/runs")
        first = start(job, "checkpoint.every_steps=5")
        wait_for(first, ": saved", lines=1)
        first.kill()
        first.communicate()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
        proxy.fail("GET .*safetensors", kind="delay", times=1000, seconds=60)
        process = start(job)
        wait_for(process, "pretrain: to be continued", lines=1)
        time.sleep(5.0)  # it comes down while torch is imported, and for long after
        output = ended_by_sigterm(process, GRACE)
        assert "continues after step" not in output
        proxy.clear()
        again = start(job)
        wait_for(again, "continues after step", lines=1)
        again.kill()
        again.communicate()


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_sigterm_while_the_model_is_compiled_ends_within_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    job = write_job(tmp_path, **LONG, hardware__compile=True)
    process = start(job)
    wait_for(process, "pretrain: starts", lines=1)
    time.sleep(3.0)
    children = psutil.Process(process.pid).children(recursive=True)
    output = ended_by_sigterm(process, GRACE)
    assert "pretrain step 1/" not in output
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_sigterm_saves_the_last_finished_step(tmp_path: Path) -> None:
    job = write_job(tmp_path, **LONG, checkpoint__every_steps=10_000)
    process = start(job)
    wait_for(process, "pretrain step 15", lines=1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert head_of(tmp_path).checkpoints[0].step >= 15


def test_a_save_that_cannot_end_within_the_grace_leaves_the_last_durable_state(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3.url) as proxy:
        proxy.use(monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        store = f"s3://{s3.bucket()}/runs"
        job = write_job(tmp_path, **LONG, store=store, checkpoint__grace=2.0)
        process = start(job, "checkpoint.every_steps=5")
        wait_for(process, ": saved", lines=1)
        proxy.fail("PUT .*safetensors", kind="delay", times=1000, seconds=60)
        durable = _step(store)
        wait_for(process, "pretrain step", lines=10)
        output = ended_by_sigterm(process, 2.0)
        assert "time is up" in output
        assert _step(store) >= durable
        proxy.clear()
        again = start(job)
        wait_for(again, "continues after step", lines=1)
        again.kill()
        again.communicate()


def ended_by_sigterm(process: subprocess.Popen[str], grace: float) -> str:
    """What is still printed; it ends with 75, and in time."""
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert time.monotonic() - asked < grace + SLACK
    return output


def _step(store: str) -> int:
    head = RunState(open_store(store), "tiny").read()
    assert head is not None
    return head.checkpoints[0].step


def test_a_stop_request_is_obeyed_with_exit_4_and_by_a_manager_until_a_person_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path, **LONG)
    process = start(job, "pretrain.steps=100000")
    wait_for(process, "pretrain step 5", lines=1)
    ask_stop(RunState(open_store(str(tmp_path / "runs")), "tiny"), "pion stop")
    output, _ = process.communicate()
    assert process.returncode == 4, output
    assert "Stopped by request" in output
    assert head_of(tmp_path).checkpoints
    assert head_of(tmp_path).owner is None

    monkeypatch.setenv("PION_LAUNCH_ID", "a-manager")
    managed = start(job, "pretrain.steps=100000")
    output, _ = managed.communicate()
    assert managed.returncode == 4, output
    monkeypatch.delenv("PION_LAUNCH_ID")
    person = start(job, "pretrain.steps=100000")
    wait_for(person, "continues after step", lines=1)
    person.send_signal(signal.SIGINT)
    assert person.wait() == 75


def test_a_spent_budget_stops_the_run_saved_and_raising_it_goes_on(tmp_path: Path) -> None:
    job = write_job(tmp_path, **LONG)
    limit = ("budget.dollars=0.01", "budget.dollars_per_hour=9")  # four seconds' worth
    process = start(job, *limit, "pretrain.steps=100000")
    output, _ = process.communicate()
    assert process.returncode == 4, output
    assert "budget" in output
    assert "Traceback" not in output
    again = start(job, "budget.dollars=1", limit[1], "pretrain.steps=100000")
    wait_for(again, "pretrain step", lines=2)
    again.send_signal(signal.SIGINT)
    output, _ = again.communicate()
    assert again.returncode == 75, output


def test_a_killed_uploader_costs_a_save_and_nothing_else(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(write_job(whole))
    job = write_job(tmp_path, checkpoint__every_steps=2, log__every=1)
    process = start(job)
    killed = 0
    for line in iter(process.stdout.readline, ""):  # type: ignore[union-attr]
        if "pretrain step" in line and killed < 2:
            for child in psutil.Process(process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "pipeline.state.checkpoints.upload_worker" in " ".join(child.cmdline()):
                        child.kill()
                        killed += 1
    assert process.wait() == 0
    assert killed
    assert final_weights(tmp_path) == final_weights(whole)


def test_a_hang_is_noticed_described_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, tmp_path, HANG)
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=2)
    process = start(job, "hardware.hang_seconds=5")
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "training hangs" in output
    assert "in take" in output  # the stack says where
    monkeypatch.undo()
    assert "continues after step" in finish(job)


def test_a_suspended_machine_does_not_count_as_a_hang(tmp_path: Path) -> None:
    job = write_job(tmp_path, **LONG)
    process = start(job, "hardware.hang_seconds=5")
    wait_for(process, "pretrain step 20", lines=1)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(process.pid, signal.SIGCONT)
    wait_for(process, "pretrain step", lines=20)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 75
    assert "hangs" not in output


def test_rows_that_give_nan_are_left_out_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, tmp_path, POISON)
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=3)
    output = finish(job)
    assert "leaving out rows 28 to 31" in output
    trained = rows_trained(tmp_path, "pretrain")
    assert trained[:9] == [*([4 * s, 4 * s + 4] for s in range(7)), [28, 36], [36, 40]]
    assert len(trained) == 20
    (rows,) = head_of(tmp_path).skipped["pretrain"]
    assert (rows.first, rows.stop, rows.step) == (28, 32, 8)
    events = read_events(open_store(str(tmp_path / "runs")), "tiny")
    assert [e["rows"] for e in events if e["event"] == "rewound"] == [[28, 32]]


def test_trouble_at_every_turn_stops_after_the_agreed_tries_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, tmp_path, POISON.replace("== (28, 32)", "> (28, 32)"))
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=3)
    process = start(job, "checkpoint.max_rewinds=2")
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert len(head_of(tmp_path).skipped["pretrain"]) == 2
    assert head_of(tmp_path).checkpoints[0].step <= 8


def meddle(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Run `code` in every Python of ours before its own; `take` is given each step's batch."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


HANG = """
import sys, time
if "pipeline.cli" in " ".join(sys.orig_argv):
    import pion.train.feed as feed
    wrapped = feed.BatchFeed.take
    def take(self, next_row, skipped):
        if next_row == 28:
            time.sleep(1000)
        return wrapped(self, next_row, skipped)
    feed.BatchFeed.take = take
"""
POISON = """
import sys
if "pipeline.cli" in " ".join(sys.orig_argv):
    import pion.train.feed as feed
    take = feed.BatchFeed.take
    def poisoned(self, next_row, skipped):
        batch = take(self, next_row, skipped)
        if batch.rows == (28, 32):
            import torch
            for p in POISONED:
                p.data[0] = float("nan")
        return batch
    feed.BatchFeed.take = poisoned
    import pion.train.trainer as trainer
    POISONED = []
    init = trainer.Trainer.__init__
    def noting(self, model, *a, **k):
        init(self, model, *a, **k)
        POISONED[:] = [next(model.parameters())]
    trainer.Trainer.__init__ = noting
"""


def test_a_run_that_is_taken_over_ends_with_exit_3_and_names_who_took_it(tmp_path: Path) -> None:
    job = write_job(tmp_path, **LONG)
    long = ("pretrain.steps=100000", "log.every=50")
    first = start(job, *long, "checkpoint.every_steps=20")
    wait_for(first, ": saved", lines=1)
    second = start(job, *long, "--take-over", "checkpoint.every_steps=20")
    wait_for(second, "continues after step", lines=1)
    output, _ = first.communicate()
    assert first.returncode == 3, output
    assert f"taken over by pid {second.pid}" in output
    wait_for(second, ": saved", lines=1)
    second.send_signal(signal.SIGINT)
    output, _ = second.communicate()
    assert second.returncode == 75, output
    epochs = [entry.epoch for entry in head_of(tmp_path).checkpoints]
    assert epochs == sorted(epochs, reverse=True)


# ---------------------------------------------------------------- stops in the midst of evaluation

EVALUATED: dict[str, Any] = {"sft": None, "evaluate__ngram_order": 0}
ONE_PART = "evaluate: pretrain model on held-out text"
BEATS_OFTEN = """
import sys
if "pipeline.cli" in " ".join(sys.orig_argv):
    import time
    from importlib import import_module
    from pathlib import Path
    heartbeat = import_module("pipeline.state.heartbeat")
    advance = import_module("pipeline.run.advance")
    import_module("pion.train.heldout")  # measures with what is there now
    evaluate = import_module("pion.evaluate")
    # One row a batch: a part takes far longer than it takes to hear of a request.
    import_module("pipeline.stages.measures").TOKENS_AT_ONCE["cpu"] = 1
    HERE = Path("{here}")
    heartbeat.Heartbeat.start.__defaults__ = ({beat},)
    over_budget = advance.over_budget
    advance.over_budget = lambda *a: "9 h" if (HERE / "spent").exists() else over_budget(*a)
    token_nll = evaluate.token_nll
    def slow(*arguments):
        {does}
        return token_nll(*arguments)
    evaluate.token_nll = slow
"""
ONE_ENDLESS_BATCH = "time.sleep(1000)"
IN_TIME = 60.0
"""A heartbeat and the grace, which are seconds here, on a busy machine."""


def meddle_with_evaluation(
    monkeypatch: pytest.MonkeyPatch, folder: Path, does: str, beat: float = 0.3
) -> None:
    """Do `does` before each batch of the evaluate stage, and beat every `beat` seconds."""
    meddle(monkeypatch, folder, BEATS_OFTEN.format(here=folder, beat=beat, does=does))


def parts_of(folder: Path) -> dict[str, Any]:
    """Stored parts of the evaluation, by name."""
    found = (folder / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts/*.json")
    return {path.stem: json.loads(path.read_text()) for path in found}


def test_a_run_taken_over_in_the_midst_of_a_part_ends_with_exit_3_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle_with_evaluation(monkeypatch, tmp_path, ONE_ENDLESS_BATCH)
    job = write_job(tmp_path, **EVALUATED)
    first = start(job)
    wait_for(first, ONE_PART, lines=1)
    monkeypatch.undo()
    second = start(job, "--take-over")
    wait_for(second, "evaluate: starts", lines=1)
    asked = time.monotonic()
    output, _ = first.communicate()
    assert first.returncode == 3, output
    assert time.monotonic() - asked < IN_TIME
    assert f"taken over by pid {second.pid}" in output
    assert "Traceback" not in output
    output, _ = second.communicate()
    assert second.returncode == 0, output


def test_a_part_that_ends_after_the_run_was_taken_over_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = 'while not (HERE / "taken").exists(): time.sleep(0.05)'
    forge = f"{wait}\n        return tuple(0 * t for t in token_nll(*arguments))"
    meddle_with_evaluation(monkeypatch, tmp_path, forge, beat=1000)
    job = write_job(tmp_path, **EVALUATED)
    first = start(job)
    wait_for(first, ONE_PART, lines=1)
    monkeypatch.undo()
    second = start(job, "--take-over")
    wait_for(second, "evaluate: starts", lines=1)
    (tmp_path / "taken").touch()
    output, _ = first.communicate()
    assert first.returncode == 3, output
    assert f"taken over by pid {second.pid}" in output
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert parts_of(tmp_path)["pretrain.held_out"]["loss"] > 0


@pytest.mark.parametrize("why", ["request", "budget"])
def test_a_stop_in_the_midst_of_a_part_ends_with_exit_4_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    meddle_with_evaluation(monkeypatch, tmp_path, ONE_ENDLESS_BATCH)
    process = start(write_job(tmp_path, **EVALUATED))
    wait_for(process, ONE_PART, lines=1)
    asked = time.monotonic()
    if why == "request":
        ask_stop(RunState(open_store(str(tmp_path / "runs")), "tiny"), "pion stop")
    else:
        (tmp_path / "spent").touch()
    output, _ = process.communicate()
    assert process.returncode == 4, output
    assert time.monotonic() - asked < IN_TIME
    assert ("pion stop" if why == "request" else "9 h") in output
    assert not parts_of(tmp_path)


def test_a_stop_between_two_batches_lets_anyone_go_on_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle_with_evaluation(monkeypatch, tmp_path, "time.sleep(0.5)")
    job = write_job(tmp_path, **EVALUATED, evaluate__final_rows=100_000)
    process = start(job)
    wait_for(process, ONE_PART, lines=1)
    ask_stop(RunState(open_store(str(tmp_path / "runs")), "tiny"), "pion stop")
    output, _ = process.communicate()
    assert process.returncode == 4, output
    assert "Stopped (" in output
    assert head_of(tmp_path).owner is None
    assert not parts_of(tmp_path)


# ---------------------------------------------------------------- hangs that are none, and others

SLOW_EVALUATION = """
import sys
if "pipeline.cli" in " ".join(sys.orig_argv):
    import time
    from importlib import import_module
    generate, heldout = import_module("pion.generate"), import_module("pion.train.heldout")
    token_nll, next_logits = heldout.token_nll, generate._next_logits
    def slow(*arguments):
        time.sleep(ROW)
        return token_nll(*arguments)
    def slow_token(*arguments):
        time.sleep(0.2)
        return next_logits(*arguments)
    heldout.token_nll, generate._next_logits = slow, slow_token
"""
NEVER_BUILT = """
import sys
if "pipeline.cli" in " ".join(sys.orig_argv):
    import functools, time
    import pion.train.trainer as trainer
    import pipeline.training.context as context
    context.Watchdog = functools.partial(context.Watchdog, start_limit=8.0)
    def never_built(self, *arguments, **options):
        time.sleep(1000)
    trainer.Trainer.__init__ = never_built
"""
BY_ROW: dict[str, Any] = {
    "sft": None,
    "pretrain__steps": 4,
    "evaluate__every": 4,
    "hardware__micro_batch": 1,
    "hardware__hang_seconds": 5,
}


def test_an_evaluation_that_takes_longer_than_a_hang_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, tmp_path, SLOW_EVALUATION.replace("ROW", "1.5"))
    process = start(write_job(tmp_path, **BY_ROW))
    wait_for(process, "held-out loss", lines=1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "hangs" not in output


def test_an_evaluation_that_hangs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, tmp_path, SLOW_EVALUATION.replace("ROW", "1000"))
    process = start(write_job(tmp_path, **BY_ROW))
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "training hangs" in output
    assert "in slow" in output


def test_a_trainer_that_is_never_built_is_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, tmp_path, NEVER_BUILT)
    process = start(write_job(tmp_path, **BY_ROW))
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "training hangs" in output
    assert "in never_built" in output


def test_a_run_taken_over_while_training_measures_the_model_ends_with_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = BEATS_OFTEN.format(here=tmp_path, beat=0.3, does="pass")
    meddle(monkeypatch, tmp_path, often + SLOW_EVALUATION.replace("ROW", "0.5"))
    job = write_job(tmp_path, **BY_ROW, log__every=1)
    first = start(job, "evaluate.rows=100000")
    wait_for(first, "pretrain step 4/", lines=1)
    monkeypatch.undo()
    second = start(job, "--take-over")
    output, _ = first.communicate()
    assert first.returncode == 3, output
    assert f"taken over by pid {second.pid}" in output
    assert "held-out loss" not in output
    second.kill()
    second.communicate()
