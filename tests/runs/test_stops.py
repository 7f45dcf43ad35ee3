"""A stop request, a spent budget, a run taken over: it says why, saves, and ends in time."""

import json
import time

import pytest

from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.meddling import Meddling
from tests.support.waiting import wait_until
from tests.support.whole_runs import ends_with, head_of, interrupt, kill, start, wait_for, write_job

LONG = {"pretrain__steps": 400, "sft": None, "log__every": 1}
WITHOUT_END = "pretrain.steps=100000"


def ask(folder):
    ask_stop(RunState(open_store(str(folder / "runs")), "tiny"), "pion stop")


def beats_every(seconds, meddling):
    meddling.wrap(
        "pipeline.state.heartbeat:Heartbeat.start",
        f"""
        def wrapper(start_heartbeat, self):
            start_heartbeat(self, {seconds})
        """,
    )
    return meddling


def test_a_stop_request_is_obeyed_with_exit_4_and_by_a_manager_until_a_person_starts_again(
    tmp_path, monkeypatch
):
    meddling = beats_every(0.3, Meddling(tmp_path))
    job = write_job(tmp_path, **LONG)
    process = start(job, WITHOUT_END, env=meddling.environment())
    wait_for(process, "pretrain step 5")
    ask(tmp_path)
    assert "Stopped by request" in ends_with(4, process)
    assert head_of(tmp_path).checkpoints
    assert head_of(tmp_path).owner is None

    monkeypatch.setenv("PION_LAUNCH_ID", "a-manager")
    ends_with(4, start(job, WITHOUT_END))
    monkeypatch.delenv("PION_LAUNCH_ID")
    person = start(job, WITHOUT_END)
    wait_for(person, "continues after step")
    interrupt(person)
    meddling.check()


def test_a_spent_budget_stops_the_run_saved_and_raising_it_continues(tmp_path):
    job = write_job(tmp_path, **LONG)
    limit = ("budget.dollars=0.004", "budget.dollars_per_hour=9")  # enough for two seconds
    output = ends_with(4, start(job, *limit, WITHOUT_END))
    assert "budget" in output
    assert "Traceback" not in output
    again = start(job, "budget.dollars=1", limit[1], WITHOUT_END)
    wait_for(again, "pretrain step", lines=2)
    interrupt(again)


def test_a_run_that_is_taken_over_ends_with_exit_3_and_names_who_took_it(tmp_path):
    job = write_job(tmp_path, **LONG)
    long = (WITHOUT_END, "log.every=50", "checkpoint.every_steps=20")
    first = start(job, *long)
    wait_for(first, ": saved")
    second = start(job, *long, "--take-over")
    wait_for(second, "continues after step")
    assert f"taken over by pid {second.pid}" in ends_with(3, first)
    wait_for(second, ": saved")
    interrupt(second)
    epochs = [entry.epoch for entry in head_of(tmp_path).checkpoints]
    assert epochs == sorted(epochs, reverse=True)


# ---------------------------------------------------------------- in the midst of evaluation

EVALUATED = {"sft": None, "evaluate__ngram_order": 0}
BATCH = "pion.evaluation.held_out:token_nll"
ONE_PART = "evaluate: pretrain model on held-out text"
# A heartbeat and the grace take seconds on a busy machine.
IN_TIME = 60.0


def meddle_with_evaluation(folder, does, beat=0.3):
    """Run `does` before each batch of the evaluate stage, with a heartbeat every `beat` seconds."""
    meddling = beats_every(beat, Meddling(folder))
    meddling.run(
        """
        # One row a batch: a part takes far longer than it takes to hear of a request.
        assert "cpu" in import_module("pipeline.stages.measures").TOKENS_AT_ONCE
        import_module("pipeline.stages.measures").TOKENS_AT_ONCE["cpu"] = 1
        """
    )
    wrapper = f"""
        def wrapper(token_nll, *arguments):
            if not import_module("torch").is_inference_mode_enabled():  # as training measures
                (HERE / "measuring").touch()
                {does}
            return token_nll(*arguments)
        """
    meddling.wrap(BATCH, wrapper)
    return meddling


ONE_ENDLESS_BATCH = "time.sleep(1000)"


def wait_for_the_midst_of_a_part(process, meddling):
    wait_for(process, ONE_PART)
    wait_for_a_measured_batch(meddling)


def wait_for_a_measured_batch(meddling):
    measuring = meddling.folder / "measuring"
    wait_until(measuring.exists, "the first batch to be measured")


def parts_of(folder):
    """Return the stored parts of the evaluation, by name."""
    found = (folder / "runs" / "tiny" / "stages" / "evaluate").glob("*-parts/*.json")
    return {path.stem: json.loads(path.read_text()) for path in found}


def test_a_run_taken_over_in_the_midst_of_a_part_ends_with_exit_3_in_time(tmp_path):
    meddling = meddle_with_evaluation(tmp_path, ONE_ENDLESS_BATCH)
    job = write_job(tmp_path, **EVALUATED)
    first = start(job, env=meddling.environment())
    wait_for_the_midst_of_a_part(first, meddling)
    second = start(job, "--take-over")
    wait_for(second, "evaluate: starts")
    asked = time.monotonic()
    output = ends_with(3, first)
    assert time.monotonic() - asked < IN_TIME
    assert f"taken over by pid {second.pid}" in output
    assert "Traceback" not in output
    ends_with(0, second)
    meddling.check()


def test_a_part_that_ends_after_the_run_was_taken_over_is_not_stored(tmp_path):
    wait = 'while not (HERE / "taken").exists(): time.sleep(0.05)'
    forge = f"{wait}\n                return tuple(0 * t for t in token_nll(*arguments))"
    meddling = meddle_with_evaluation(tmp_path, forge, beat=1000)
    job = write_job(tmp_path, **EVALUATED)
    first = start(job, env=meddling.environment())
    wait_for_the_midst_of_a_part(first, meddling)
    second = start(job, "--take-over")
    wait_for(second, "evaluate: starts")
    (tmp_path / "taken").touch()
    assert f"taken over by pid {second.pid}" in ends_with(3, first)
    ends_with(0, second)
    assert parts_of(tmp_path)["pretrain.held_out"]["loss"] > 0
    meddling.check()


@pytest.mark.parametrize("why", ["request", pytest.param("budget", marks=pytest.mark.soak)])
def test_a_stop_in_the_midst_of_a_part_ends_with_exit_4_in_time(tmp_path, why):
    meddling = meddle_with_evaluation(tmp_path, ONE_ENDLESS_BATCH)
    meddling.wrap(
        "pipeline.run.advance:over_budget",
        """
        def wrapper(over_budget, *arguments):
            return "9 h" if (HERE / "spent").exists() else over_budget(*arguments)
        """,
    )
    process = start(write_job(tmp_path, **EVALUATED), env=meddling.environment())
    wait_for_the_midst_of_a_part(process, meddling)
    asked = time.monotonic()
    if why == "request":
        ask(tmp_path)
    else:
        (tmp_path / "spent").touch()
    output = ends_with(4, process)
    assert time.monotonic() - asked < IN_TIME
    assert ("pion stop" if why == "request" else "9 h") in output
    assert not parts_of(tmp_path)
    if why == "budget":
        meddling.check()


def test_a_stop_between_two_batches_lets_anyone_continue_at_once(tmp_path):
    meddling = meddle_with_evaluation(tmp_path, "time.sleep(0.5)")
    job = write_job(tmp_path, **EVALUATED, evaluate__final_rows=100_000)
    process = start(job, env=meddling.environment())
    wait_for_the_midst_of_a_part(process, meddling)
    ask(tmp_path)
    assert "Stopped (" in ends_with(4, process)
    assert head_of(tmp_path).owner is None
    assert not parts_of(tmp_path)
    meddling.check()


def test_a_run_taken_over_while_training_measures_the_model_ends_with_exit_3(tmp_path):
    meddling = beats_every(0.3, Meddling(tmp_path))
    meddling.wrap(
        BATCH,
        """
        def wrapper(token_nll, *arguments):
            if import_module("torch").is_inference_mode_enabled():  # as training measures
                (HERE / "measuring").touch()
                time.sleep(0.5)
            return token_nll(*arguments)
        """,
    )
    by_row = {"pretrain__steps": 4, "evaluate__every": 4, "hardware__micro_batch": 1}
    job = write_job(tmp_path, sft=None, log__every=1, hardware__hang_seconds=5, **by_row)
    first = start(job, "evaluate.rows=100000", env=meddling.environment())
    wait_for(first, "pretrain step 4/")
    wait_for_a_measured_batch(meddling)
    second = start(job, "--take-over")
    output = ends_with(3, first)
    assert f"taken over by pid {second.pid}" in output
    assert "held-out loss" not in output
    kill(second)
    meddling.check()
