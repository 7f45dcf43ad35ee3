"""A run whose last stage learns from preferences keeps every promise that other runs keep."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pion.files import sha256_file
from pion.train.preference_losses import METRICS
from pipeline.cli import main
from pipeline.state.head import REFERENCE
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.shared.find_or_prepare import find_or_prepare
from pipeline.state.shared.folder import complete
from pipeline.state.shared.records import Writer
from pipeline.state.stores import FileStore
from tests.support.meddling import with_slow_steps
from tests.support.preference_runs import PREFER, killed_in_the_pass, prefer_job
from tests.support.whole_runs import (
    ends_with,
    final_weights,
    finish,
    finish_after_kills,
    head_of,
    kill,
    losses,
    metrics_of,
    rows_trained,
    start,
    wait_for,
)

STEPS = PREFER["steps"]
EACH_STEP = {"checkpoint__every_steps": 1, "log__every": 1}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(prefer_job(folder, publish={"to": "model"}))
    return folder


def reference_of(folder):
    """Return what the last checkpoint says of its reference: the key, and the hashes."""
    key = head_of(folder).stages["prefer"].checkpoint
    record = (folder / "runs/tiny" / key / "reference.json").read_text()
    assert json.loads(record)["key"] == head_of(folder).data[REFERENCE].split("/")[1]
    return record


def test_a_job_learns_from_pairs_after_fine_tuning_and_publishes_the_result(unbroken):
    head = head_of(unbroken)
    assert list(head.data) == ["pretrain", "sft", "prefer", REFERENCE]
    weights = final_weights(unbroken)
    assert len(set(weights.values())) == len(weights) == 3
    results = head.stages["evaluate"].result
    first, *_ = losses(unbroken, "prefer")
    assert first == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert results["prefer"]["response_loss"] != results["sft"]["response_loss"]
    assert (unbroken / "model/model.safetensors").is_file()
    assert (
        "chat_template" in (unbroken / "model/tokenizer_config.json").read_text()
        or (unbroken / "model/chat_template.jinja").is_file()
    )
    card = (unbroken / "model/README.md").read_text()
    assert "`pairs.jsonl` (jsonl files) (preferences)" in card
    assert "preference tuning" in card


def test_the_evaluation_says_what_changed_and_measures_the_start_by_its_stored_numbers(unbroken):
    head = head_of(unbroken)
    tuned = head.stages["evaluate"].result["prefer"]
    found = tuned["preferences"]
    assert (found["start"], found["kind"], found["with_reference"]) == ("sft", "pairs", True)
    assert tuned["accuracy"] == found["after"]["margin"]["accuracy"]
    folder = unbroken / "runs" / head.data[REFERENCE] / "reference.json"
    assert json.loads(folder.read_text())["weights"] == found["reference"]
    (parts,) = (unbroken / "runs/tiny/stages/evaluate").glob("*-parts")
    assert (parts / "prefer.preferences.json").is_file()
    assert not (parts / "sft.preferences.json").exists()
    results = head.stages["evaluate"].result
    change = tuned["bits_per_byte"] - results["sft"]["bits_per_byte"]
    assert tuned["text_change"] == pytest.approx(change)
    card = (unbroken / "model/README.md").read_text()
    assert "agreement with these labels, and not with people" in card
    assert f"the SHA-256 `{found['reference']}`" in card
    page = (unbroken / "runs/tiny/report.html").read_text()
    assert "the chosen answer is likelier, by the mean over its tokens" in page


def test_each_step_and_evaluation_says_how_many_pairs_are_right(unbroken):
    rows = metrics_of(unbroken, "prefer")
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == STEPS
    assert all(0 <= row["accuracy"] <= 1 for row in steps)
    assert steps[0].keys() >= METRICS.keys()
    assert sum(row["pairs"] for row in steps) > STEPS  # two in most rows
    assert steps[0]["moved"] < 1e-3 < steps[-1]["moved"]
    (held_out,) = [row for row in rows if "held_out_loss" in row]
    assert 0 <= held_out["held_out_accuracy"] <= 1
    result = head_of(unbroken).stages["prefer"].result
    assert result["held_out_accuracy"] == held_out["held_out_accuracy"]
    assert result["held_out_loss"] == held_out["held_out_loss"]
    assert held_out["held_out_loss"] < 2  # of pairs: a token's loss is larger in this model


def test_every_row_of_pairs_is_trained_once_in_order(unbroken):
    assert rows_trained(unbroken, "prefer") == [[4 * s, 4 * s + 4] for s in range(STEPS)]


@pytest.mark.soak
def test_sigkills_change_no_bit_of_the_weights(tmp_path, unbroken):
    finish_after_kills(prefer_job(tmp_path, **EACH_STEP), "prefer", 1)
    assert_same_run(tmp_path, unbroken)


def assert_same_run(folder, unbroken):
    """Check that two runs have the same weights, rows and numbers of a reference."""
    assert final_weights(folder) == final_weights(unbroken)
    assert rows_trained(folder, "prefer") == rows_trained(unbroken, "prefer")
    assert reference_of(folder) == reference_of(unbroken)


@pytest.mark.soak
def test_a_stage_with_lora_resumes_on_its_base_and_changes_no_bit(tmp_path):
    """Its reference is the fine-tuned model, which each attempt finds again."""
    lora = {"prefer__lora": {"rank": 4}, **EACH_STEP}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    finish(prefer_job(whole, **lora))
    output = finish_after_kills(prefer_job(killed, **lora), "prefer", 1)
    assert "warning: prefer resumes" not in output
    assert final_weights(killed) == final_weights(whole)


def test_sigkills_in_the_pass_of_the_reference_change_no_bit(tmp_path, unbroken):
    job = prefer_job(tmp_path)
    killed_in_the_pass(tmp_path, job, 1)  # before the first chunk
    killed_in_the_pass(tmp_path, job, 6)  # after the third one
    output = finish(job)
    assert "reference pass: continuing after row 12 of" in output, output
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert reference_of(tmp_path) == reference_of(unbroken)


def test_a_fork_with_another_beta_needs_no_second_pass(tmp_path, unbroken):
    shutil.copytree(unbroken / "runs", tmp_path / "runs")
    fork = ["fork", f"{tmp_path}/runs/tiny", f"{tmp_path}/runs/other", "--stage", "sft"]
    assert main(fork) == 0
    output = finish(prefer_job(tmp_path, name="other"), "prefer.beta=0.5")
    assert "sft: done" in output
    assert "prefer step 8" in output
    assert "reference pass" not in output
    assert head_of(tmp_path).data[REFERENCE] == head_of(tmp_path, "other").data[REFERENCE]


def with_other_sums(source, target):
    """Let the store `target` have the reference of a run of `source`, computed on another machine:
    with the same key, and sums that differ by rounding. Return its folder."""
    _, key, name = head_of(source.parent).data[REFERENCE].split("/")
    files = target.parent / "theirs"
    shutil.copytree(source / "_data" / key / name, files)
    described = json.loads((files / "reference.json").read_text())
    for name in described["files"]:
        np.save(files / name, np.load(files / name) - 1e-6)
        described["files"][name] = sha256_file(files / name)
    (files / "reference.json").write_text(json.dumps(described))
    run, me = RunState(FileStore(target), "theirs"), Owner.me()
    begun = find_or_prepare(run, key, 1, me, lambda *waits: None)
    assert isinstance(begun, Writer)
    return target / "_data" / key / complete(run, key, begun, files, ())


def test_a_fork_to_a_store_with_other_sums_of_the_same_key_continues_with_its_own(
    tmp_path, unbroken
):
    """A checkpoint was trained with its sums, and no others."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    ends_with(4, start(prefer_job(first, **EACH_STEP), "prefer.pause_at=4"))
    theirs = with_other_sums(first / "runs", second / "runs")
    before = (theirs / "train/0/shard_00000.reference.npy").read_bytes()
    for name in ("tiny", "again"):
        assert main(["fork", f"{first}/runs/tiny", f"{second}/runs/{name}"]) == 0
    # The second fork finds the copy of the first.
    assert head_of(second).data[REFERENCE] == head_of(second, "again").data[REFERENCE]
    output = finish(prefer_job(second, **EACH_STEP))
    assert "prefer: starts (continues after step 4" in output, output
    assert "reference pass" not in output
    assert final_weights(second) == final_weights(unbroken)
    assert (
        theirs / "train/0/shard_00000.reference.npy"
    ).read_bytes() == before  # runs of that store still have it


def test_another_loss_needs_a_redo_of_its_stage_alone(tmp_path, unbroken):
    shutil.copytree(unbroken / "runs", tmp_path / "runs")
    job, other = prefer_job(tmp_path), ("prefer.loss=simpo", "prefer.beta=1.0")
    output = ends_with(2, start(job, *other))
    assert 'prefer.loss: "dpo" → "simpo"' in output
    assert "--redo prefer" in output
    finish(job, *other, "--redo", "prefer")
    before, after = final_weights(unbroken), final_weights(tmp_path)
    assert after.pop("prefer") != before.pop("prefer")
    assert after == before


# ---------------------------------------------------------------- answers with labels

LABELS = {"prefer__loss": "apo-zero", "prefer__undesirable_weight": 1.5}


def labels_job(folder, **changes):
    """Write the job with labelled answers instead of pairs: both sides of each, as two lines."""
    job = prefer_job(folder, **LABELS | changes)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    lines = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return job


@pytest.fixture(scope="module")
def unbroken_labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    finish(labels_job(folder))
    return folder


def test_each_step_learns_from_single_answers_by_their_weights(unbroken_labels):
    steps = [row for row in metrics_of(unbroken_labels, "prefer") if "loss" in row]
    assert len(steps) == STEPS
    assert losses(unbroken_labels, "prefer")[0] == pytest.approx(0.625, abs=0.13)  # between ½ and ¾
    assert all(0 <= step["accuracy"] <= 1 for step in steps)
    assert head_of(unbroken_labels).stages["evaluate"].result["prefer"]


@pytest.mark.soak
def test_sigkills_change_no_bit_of_what_labels_teach(tmp_path, unbroken_labels):
    finish_after_kills(labels_job(tmp_path, **EACH_STEP), "prefer", 2)
    assert_same_run(tmp_path, unbroken_labels)


def test_single_answers_are_refused_by_a_loss_of_pairs_before_training(tmp_path):
    output = ends_with(
        2, start(labels_job(tmp_path, prefer__loss="simpo", prefer__undesirable_weight=1.0))
    )
    assert "prefer.sources.0: these are single answers with labels" in output
    assert "prefer.loss=apo-zero" in output
    assert "pretrain: starts" not in output


# ---------------------------------------------------------------- what spoils a model

# Far too high a rate.
SPOILS = {"prefer__steps": 40, "prefer__lr": 0.1, "prefer__warmup_steps": 0}
WARNING = "warning: prefer step 8: the model has left its reference"


@pytest.mark.soak
def test_a_warning_is_said_once_by_a_run_that_is_killed_and_its_report_has_it(tmp_path, capsys):
    job = prefer_job(tmp_path, **SPOILS, **EACH_STEP)
    slow = with_slow_steps(tmp_path)
    process = start(job, env=slow.environment())
    wait_for(process, WARNING)
    wait_for(process, "prefer step 20/40")
    wait_for(process, ": saved")
    kill(process)
    output = finish(job)
    resumed = re.search(r"prefer: starts \(continues after step (\d+)", output)
    assert resumed is not None, output
    assert int(resumed[1]) > 8
    assert "the model has left its reference" not in output
    url = f"{tmp_path}/runs/tiny"
    assert main(["status", url]) == 0
    assert capsys.readouterr().out.count(WARNING) == 1
    assert main(["report", url]) == 0
    assert Path(url, "report.html").read_text().count(WARNING) == 1


def test_a_stage_that_teaches_nothing_ends_and_says_why_also_when_it_resumes(tmp_path):
    job = prefer_job(tmp_path, prefer__steps=30, prefer__lr=1e-20, prefer__min_lr=0.0, **EACH_STEP)
    output = ends_with(1, start(job))
    assert "prefer: nothing learns: after 20 steps" in output, output
    assert "--redo prefer" in output
    head = head_of(tmp_path)
    assert "prefer" not in head.stages
    again = ends_with(1, start(job))
    assert "continues after step" in again
    assert "prefer: nothing learns: after" in again
