"""The runs of a store prepare the same data once. Other data is prepared again."""

import json
import os
import shutil

from pipeline.cli import main
from pipeline.job.file import load_job
from pipeline.machine.kill_points import HALT_AT
from pipeline.rent.plan.speeds import past_speeds
from tests.support.whole_runs import (
    copy_run,
    ends_with,
    final_weights,
    finish,
    head_of,
    kill,
    start,
    wait_for,
    write_job,
)

PREPARED = "prepared before"


def data_of(folder, name):
    """Return the keys of the data that a run lists."""
    return dict(head_of(folder, name).data)


def test_a_second_learning_rate_prepares_nothing(tmp_path):
    job = write_job(tmp_path)
    assert "training a BPE" in finish(job, "--until", "prepare")
    output = finish(job, "name=second", "pretrain.lr=2e-2", "--until", "prepare")
    assert output.count(PREPARED) == 2  # pretraining's data, and the conversations
    assert "training a BPE" not in output
    assert "tokenise" not in output
    assert data_of(tmp_path, "second") == data_of(tmp_path, "tiny")


def test_the_same_path_with_new_bytes_is_new_data_and_another_path_is_not(tmp_path):
    job = write_job(tmp_path, sft=None)
    finish(job, "--until", "prepare")
    shutil.copytree(tmp_path / "text", tmp_path / "moved")
    moved = finish(job, "name=moved", "data.sources.0.path=moved", "--until", "prepare")
    assert PREPARED in moved
    text = next((tmp_path / "text").iterdir())
    text.write_text(text.read_text() + "\n\nOne more paragraph.\n")
    assert PREPARED not in finish(job, "name=edited", "--until", "prepare")
    assert data_of(tmp_path, "moved") == data_of(tmp_path, "tiny")
    assert data_of(tmp_path, "edited") != data_of(tmp_path, "tiny")


def test_of_two_runs_that_start_at_once_one_prepares_and_after_a_sigkill_the_other_does(tmp_path):
    job = write_job(tmp_path)
    halted = tmp_path / "halted"
    writer = start(job, "--until", "prepare", env=os.environ | {HALT_AT: f"shard:2:{halted}"})
    wait_for(writer, "training a BPE")
    waiting = start(job, "name=second", "--until", "prepare")
    wait_for(waiting, "wait for run tiny")
    kill(writer)
    assert "training a BPE" in ends_with(0, waiting)
    assert PREPARED in finish(job, "--until", "prepare")
    assert data_of(tmp_path, "second") == data_of(tmp_path, "tiny")


def test_until_stops_after_a_stage_and_a_prepared_run_finds_its_data_without_its_inputs(
    tmp_path, whole
):
    unbroken = whole()
    job = write_job(tmp_path)
    for stage, following in (("prepare", "pretrain"), ("pretrain", "sft")):
        output = finish(job, "--until", stage)
        assert f"next: {following}. To continue: pion run {job}" in output
        head = head_of(tmp_path)
        assert (list(head.stages)[-1], head.owner) == (stage, None)
        shutil.rmtree(tmp_path / "text", ignore_errors=True)
        (tmp_path / "talks.jsonl").unlink(missing_ok=True)
    assert "pretrain: done (finished" in finish(job, "--until", "pretrain")
    finish(job)
    assert final_weights(tmp_path) == final_weights(unbroken)


def test_a_run_leaves_its_speeds_for_the_plans_of_later_jobs(tmp_path, whole):
    job = load_job(copy_run(whole(), tmp_path), [f"store={tmp_path / 'runs'}"])
    speeds = past_speeds(job)
    assert {speed.seq_len for speed in speeds} == {job.seq_len("pretrain"), job.seq_len("sft")}
    assert {speed.run for speed in speeds} == {"tiny"}


def test_until_an_unknown_or_an_earlier_stage_than_redo_is_refused(tmp_path):
    job = write_job(tmp_path, sft=None)
    assert "prepare, pretrain, evaluate" in ends_with(2, start(job, "--until", "tokenise"))
    refused = ends_with(2, start(job, "--until", "prepare", "--redo", "pretrain"))
    assert "--redo pretrain is a later stage" in refused
    assert not (tmp_path / "runs").exists()


def test_the_end_of_another_run_deletes_what_was_marked_an_hour_ago(tmp_path, whole):
    job = copy_run(whole(), tmp_path)
    folder = tmp_path / "runs" / data_of(tmp_path, "tiny")["pretrain"]
    shutil.rmtree(tmp_path / "runs" / "tiny")
    assert main(["data", str(tmp_path / "runs"), "--prune", "--yes"]) == 0
    assert (folder / "dataset.json").exists()
    state = json.loads((folder.parent / "state.json").read_text())
    state["delete_after"] -= 3601
    (folder.parent / "state.json").write_text(json.dumps(state))
    text = next((tmp_path / "text").iterdir())
    text.write_text(text.read_text() + "\n\nOne more paragraph.\n")
    finish(job, "--until", "prepare")
    assert not folder.exists()
    assert (tmp_path / "runs" / data_of(tmp_path, "tiny")["pretrain"]).exists()


def test_redo_prepare_makes_a_new_folder_and_leaves_the_old_one_to_its_users(tmp_path, whole):
    job = copy_run(whole(), tmp_path)
    before = data_of(tmp_path, "tiny")
    finish(job, "name=second", "--until", "prepare")
    damaged = tmp_path / "runs" / before["pretrain"] / "dataset.json"
    damaged.write_text("{}")
    finish(job, "--redo", "prepare", "--until", "prepare")
    after = data_of(tmp_path, "tiny")
    assert after["pretrain"].split("/")[1] == before["pretrain"].split("/")[1]
    assert after["pretrain"] != before["pretrain"]
    assert json.loads((tmp_path / "runs" / after["pretrain"] / "dataset.json").read_text())
    assert data_of(tmp_path, "second") == before
    assert damaged.exists()
