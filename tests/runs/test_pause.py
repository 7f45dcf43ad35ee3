"""`pretrain.pause_at`: a stage stops at a step of its whole schedule, and continues from there."""

from tests.support.whole_runs import (
    ends_with,
    final_weights,
    finish,
    head_of,
    metrics_of,
    newest,
    start,
    write_job,
)


def measured(folder):
    return sorted({row["step"] for row in metrics_of(folder) if "held_out_loss" in row})


def test_a_paused_stage_is_measured_and_continues_to_the_same_weights(tmp_path, whole):
    job = write_job(tmp_path)
    output = ends_with(4, start(job, "pretrain.pause_at=7"))
    assert "paused: pretrain.pause_at is 7, and step 7 of 20 is done" in output
    assert "error" not in output
    assert newest(tmp_path).step == 7
    assert measured(tmp_path) == [7]
    ends_with(4, start(job, "pretrain.pause_at=13"))
    assert newest(tmp_path).step == 13
    assert measured(tmp_path) == [7, 10, 13]
    finish(job)
    assert final_weights(tmp_path) == final_weights(whole())


def test_a_stage_beyond_the_pause_trains_no_further_and_a_pause_at_its_end_is_none(tmp_path):
    job = write_job(tmp_path, sft=None)
    ends_with(4, start(job, "pretrain.pause_at=9"))
    ends_with(4, start(job, "pretrain.pause_at=5"))
    assert newest(tmp_path).step == 9
    finish(job, "pretrain.pause_at=20")
    assert "pretrain" in head_of(tmp_path).stages
