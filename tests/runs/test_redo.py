"""A run whose job has changed since: what is refused, what is redone, and what just continues."""

import json
import sys

import pytest

from pipeline.console.messages import Sample
from pipeline.job.file import load_job
from pipeline.run.command import run_job
from pipeline.run.inputs import RunOptions
from tests.support.jobs import SilentDisplay
from tests.support.waiting import run_to_end
from tests.support.whole_runs import (
    copy_run,
    ends_with,
    final_weights,
    finish,
    head_of,
    interrupt_before_row,
    newest,
    start,
    write_job,
)


@pytest.fixture
def unbroken(whole):
    return whole()


def test_a_finished_run_says_so_and_needs_neither_torch_nor_ray(tmp_path, unbroken):
    code = (
        "import sys; from pipeline.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "run", str(copy_run(unbroken, tmp_path))]
    before = (tmp_path / "runs/tiny/HEAD.json").read_bytes()
    output = run_to_end(command, check=True).stdout
    for stage in ("prepare", "pretrain", "sft", "evaluate"):
        assert f"{stage}: done (finished " in output
    assert (tmp_path / "runs/tiny/HEAD.json").read_bytes() == before


def test_a_changed_sft_setting_is_shown_and_redo_keeps_pretraining(tmp_path, unbroken):
    job = copy_run(unbroken, tmp_path)
    head = (tmp_path / "runs/tiny/HEAD.json").read_bytes()
    output = ends_with(2, start(job, "sft.lr=2e-3"))
    assert "sft.lr: 0.001 → 0.002" in output
    assert "--redo sft" in output
    assert "pion fork" in output
    assert (tmp_path / "runs/tiny/HEAD.json").read_bytes() == head

    finish(job, "sft.lr=2e-3", "--redo", "sft")
    after, before = final_weights(tmp_path), final_weights(unbroken)
    assert after["pretrain"] == before["pretrain"]
    assert after["sft"] != before["sft"]


def test_redo_with_bad_input_loses_nothing_that_was_finished(tmp_path, unbroken):
    job = copy_run(unbroken, tmp_path)
    output = ends_with(2, start(job, "data.sources.0.path=typo", "--redo", "pretrain"))
    assert "typo" in output
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert "sft: done" in finish(job)


def test_redo_prepare_keeps_the_old_data_if_it_can_not_read_the_text(tmp_path, whole):
    unbroken = whole()
    job = copy_run(unbroken, tmp_path)
    (tmp_path / "talks.jsonl").write_text("{")  # after the text, which is prepared again
    ends_with(2, start(job, "--redo", "prepare"))
    (tmp_path / "text" / "all.txt").unlink()
    ends_with(2, start(job, "--redo", "prepare"))
    assert "sft: done" in finish(job)
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert head_of(tmp_path).data == head_of(unbroken).data


@pytest.mark.soak
def test_redo_prepare_reads_the_text_again(tmp_path, whole):
    unbroken = whole(sft=None)
    job = copy_run(unbroken, tmp_path, sft=None)
    text = tmp_path / "text" / "all.txt"
    text.write_text("\n\n".join(reversed(text.read_text().split("\n\n"))))
    finish(job, "--redo", "prepare")
    assert final_weights(tmp_path) != final_weights(unbroken)


def test_more_steps_may_be_asked_for_before_the_decay(tmp_path, whole):
    longer = whole(pretrain__steps=30, sft=None)
    job = write_job(tmp_path, log__every=1, sft=None)
    interrupt_before_row(32, job, "checkpoint.every_steps=4")
    finish(job, "pretrain.steps=30", "log.every=100")
    assert final_weights(tmp_path) == final_weights(longer)


def test_training_that_diverges_is_not_saved_as_good(tmp_path):
    job = write_job(tmp_path, pretrain__lr=1e6, pretrain__min_lr=1e6, pretrain__clip=0, sft=None)
    assert "Traceback" not in ends_with(1, start(job, "log.every=1"))
    assert not head_of(tmp_path).checkpoints


def test_run_job_can_be_called_from_python(tmp_path):
    path = write_job(tmp_path, pretrain__steps=4, sft=None, evaluate__prompts=["a"])
    display = SilentDisplay()
    assert run_job(load_job(path, []), RunOptions(), display) == 0
    assert [m.prompt for m in display.messages if isinstance(m, Sample)] == ["a"]
    manifest = tmp_path / "runs/tiny" / newest(tmp_path).key / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    assert {"model.safetensors", "optimizer.safetensors"} <= set(files)
