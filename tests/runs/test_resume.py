"""A run that is killed with SIGKILL at random instants ends with an unbroken run's weights."""

import random
import signal
import time

import pytest

from tests.support.waiting import lines_of
from tests.support.whole_runs import (
    RUN_SECONDS,
    final_weights,
    finish,
    head_of,
    interrupt_before_row,
    kill,
    newest,
    rows_trained,
    start,
    wait_for,
    write_job,
)

LONG = {"pretrain__steps": 400, "sft": None}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_sigkill_at_random_instants_changes_no_bit_of_the_weights(tmp_path, whole, seed):
    unbroken = whole()
    job = write_job(tmp_path, checkpoint__every_steps=3, log__every=1)
    instants = random.Random(seed)
    for _ in range(2):
        process = start(job)
        steps = instants.randrange(1, 14)
        for line in lines_of(process, RUN_SECONDS):  # the run may finish before the kill
            steps -= "step" in line
            if steps == 0:
                break
        time.sleep(instants.random() * 0.3)
        kill(process)
    finish(job)
    assert final_weights(tmp_path) == final_weights(unbroken)
    for stage, steps in (("pretrain", 20), ("sft", 10)):
        assert rows_trained(tmp_path, stage) == [[4 * s, 4 * s + 4] for s in range(steps)]


def test_ctrl_c_saves_the_last_step_and_the_next_run_continues_from_it(tmp_path, whole):
    unbroken = whole()
    job = write_job(tmp_path, sft=None, log__every=1)
    output = interrupt_before_row(28, job, "checkpoint.every_steps=1000", number=signal.SIGINT)
    assert "Run the same command again" in output
    stopped_at = newest(tmp_path).step
    assert stopped_at >= 5
    assert head_of(tmp_path).owner is None
    job.write_text("# a comment, which changes nothing\n" + job.read_text())
    assert f"pretrain: starts (continues after step {stopped_at})" in finish(job)
    assert final_weights(tmp_path)["pretrain"] == final_weights(unbroken)["pretrain"]


@pytest.mark.soak
def test_metrics_of_every_saved_step_survive_a_kill_between_two_log_lines(tmp_path):
    job = write_job(tmp_path, **LONG, checkpoint__every_steps=3)
    process = start(job, "log.every=10")
    wait_for(process, "saved", lines=8)
    kill(process)
    finish(job)
    assert rows_trained(tmp_path) == [[4 * s, 4 * s + 4] for s in range(400)]


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["evaluate", "publish"])
def test_sigkill_inside_a_later_stage_costs_no_training_and_changes_no_result(
    tmp_path, whole, stage
):
    published = {"evaluate__continuations": 20, "publish": {"to": "model"}}
    unbroken = whole(**published)
    job = write_job(tmp_path, **published)
    process = start(job)
    wait_for(process, f"{stage}: starts")
    time.sleep(random.Random(stage).random())
    kill(process)
    assert "sft: done (finished" in finish(job)
    results = [head_of(folder).stages["evaluate"].result for folder in (unbroken, tmp_path)]
    assert without_times(results[0]) == without_times(results[1])
    models = [(f / "model/model.safetensors").read_bytes() for f in (unbroken, tmp_path)]
    assert models[0] == models[1]
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "model."))]
    assert not leftovers


def without_times(result):
    """Return `result` without the measured seconds: they differ between runs."""
    if not isinstance(result, dict):
        return result
    return {k: without_times(v) for k, v in result.items() if "second" not in k}
