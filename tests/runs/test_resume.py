"""Killed with SIGKILL at random instants, a run ends with the weights of an unbroken one."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.run.run import Options, run_job
from pipeline.state.metrics import read_metrics
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.jobs import SilentDisplay, tiny_dict, write_tiny_data


def write_job(folder: Path, **changes: Any) -> Path:
    """A tiny job with its data in `folder`, on a store of its own."""
    write_tiny_data(folder)
    changes = {"store": str(folder / "runs"), "hardware__workers": 0, **changes}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**changes)))
    return path


def start(job: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli", "run", str(job), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(job: Path, *overrides: str) -> str:
    """Run to the end; returns what was printed."""
    process = start(job, *overrides)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def head_of(folder: Path) -> Head:
    head = RunState(open_store(str(folder / "runs")), "tiny").read()
    assert head is not None
    return head


def final_weights(folder: Path) -> dict[str, str]:
    """sha256 of each training stage's last weights."""
    head = head_of(folder)
    shas = {entry.key: entry.model_sha256 for entry in head.checkpoints}
    return {s: shas[head.stages[s].checkpoint or ""] for s in ("pretrain", "sft")}


def rows_trained(folder: Path, stage: str) -> list[list[int]]:
    """[first, stop) of each step's rows, rewound steps left out."""
    store = open_store(str(folder / "runs"))
    rows = read_metrics(store, "tiny", head_of(folder), stage)
    return [row["rows"] for row in rows if "rows" in row]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(write_job(folder))
    return folder


PUBLISHED = {"evaluate__continuations": 20}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    finish(write_job(folder, publish={"to": str(folder / "model")}, **PUBLISHED))
    return folder


@pytest.mark.parametrize("seed", range(2))
def test_sigkill_at_random_instants_changes_no_bit_of_the_weights(
    tmp_path: Path, unbroken: Path, seed: int
) -> None:
    job = write_job(tmp_path, checkpoint__every_steps=3, log__every=1)
    instants = random.Random(seed)
    for _ in range(2):
        process = start(job)
        wait_for(process, "step", lines=instants.randrange(1, 14))
        time.sleep(instants.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(job)
    assert final_weights(tmp_path) == final_weights(unbroken)
    for stage, steps in (("pretrain", 20), ("sft", 10)):
        assert rows_trained(tmp_path, stage) == [[4 * s, 4 * s + 4] for s in range(steps)]


def wait_for(process: subprocess.Popen[str], text: str, lines: int) -> None:
    """Read until `lines` lines with `text` were printed, or the output ends."""
    assert process.stdout is not None
    for line in process.stdout:
        lines -= text in line
        if lines == 0:
            return


def test_ctrl_c_saves_the_last_step_and_the_next_run_goes_on_from_it(tmp_path: Path) -> None:
    long: dict[str, Any] = {"pretrain__steps": 200, "sft": None}
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(write_job(whole, **long))
    job = write_job(tmp_path, **long, log__every=1)
    process = start(job, "checkpoint.every_steps=1000")
    wait_for(process, "pretrain step", lines=5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "Run the same command again" in output
    stopped_at = head_of(tmp_path).checkpoints[0].step
    assert stopped_at >= 5
    assert head_of(tmp_path).owner is None
    assert f"pretrain: starts (continues after step {stopped_at})" in finish(job)
    entries = [head_of(folder).checkpoints[0] for folder in (whole, tmp_path)]
    assert entries[0].model_sha256 == entries[1].model_sha256


def test_a_finished_run_says_so_without_training_anything(unbroken: Path) -> None:
    before = (unbroken / "runs/tiny/HEAD.json").read_bytes()
    output = finish(unbroken / "tiny.yaml")
    for stage in ("prepare", "pretrain", "sft", "evaluate"):
        assert f"{stage}: done (finished " in output
    assert (unbroken / "runs/tiny/HEAD.json").read_bytes() == before


def test_a_finished_run_needs_neither_torch_nor_ray(unbroken: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "run", str(unbroken / "tiny.yaml")]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def test_a_changed_sft_setting_is_shown_and_redo_keeps_pretraining(
    tmp_path: Path, unbroken: Path
) -> None:
    job = write_job(tmp_path)
    finish(job)
    process = start(job, "sft.lr=2e-3")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "sft.lr: 0.001 → 0.002" in output
    assert "--redo sft" in output
    assert final_weights(tmp_path) == final_weights(unbroken)

    finish(job, "sft.lr=2e-3", "--redo", "sft")
    after, before = final_weights(tmp_path), final_weights(unbroken)
    assert after["pretrain"] == before["pretrain"]
    assert after["sft"] != before["sft"]


def test_redo_with_bad_input_loses_nothing_that_was_finished(
    tmp_path: Path, unbroken: Path
) -> None:
    job = write_job(tmp_path)
    finish(job)
    process = start(job, "data.sources.0.path=typo", "--redo", "pretrain")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "typo" in output
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert "sft: done" in finish(job)


def test_redo_prepare_reads_the_text_again_and_keeps_the_old_data_if_it_cannot(
    tmp_path: Path, unbroken: Path
) -> None:
    job = write_job(tmp_path, sft=None)
    finish(job)
    text = tmp_path / "text" / "all.txt"
    before = text.read_text()
    text.unlink()
    process = start(job, "--redo", "prepare")
    process.communicate()
    assert process.returncode == 2
    assert "pretrain: done" in finish(job)
    assert head_of(tmp_path).checkpoints[0].model_sha256 == final_weights(unbroken)["pretrain"]

    text.write_text("\n\n".join(reversed(before.split("\n\n"))))
    finish(job, "--redo", "prepare")
    assert head_of(tmp_path).checkpoints[0].model_sha256 != final_weights(unbroken)["pretrain"]


def test_a_comment_added_to_the_job_file_changes_nothing(tmp_path: Path, unbroken: Path) -> None:
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=1)
    process = start(job)
    wait_for(process, ": saved", lines=1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    job.write_text("# a comment\n" + job.read_text())
    # On a busy machine its 20 steps may be over before the signal comes.
    assert re.search(r"pretrain: (to be continued|done \(finished)", finish(job))
    assert head_of(tmp_path).checkpoints[0].model_sha256 == final_weights(unbroken)["pretrain"]


def test_metrics_of_every_saved_step_survive_a_kill_between_two_log_lines(tmp_path: Path) -> None:
    job = write_job(tmp_path, sft=None, checkpoint__every_steps=3, pretrain__steps=400)
    process = start(job, "log.every=10")
    wait_for(process, "saved", lines=8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(job)
    assert rows_trained(tmp_path, "pretrain") == [[4 * s, 4 * s + 4] for s in range(400)]


def test_more_steps_may_be_asked_for_before_the_decay(tmp_path: Path) -> None:
    job = write_job(tmp_path, log__every=1, sft=None)
    process = start(job, "checkpoint.every_steps=4")
    wait_for(process, "pretrain step 8", lines=1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    finish(job, "pretrain.steps=24")
    longer = tmp_path / "longer"
    longer.mkdir()
    finish(write_job(longer, sft=None, pretrain__steps=24))
    entries = [head_of(folder).checkpoints[0] for folder in (tmp_path, longer)]
    assert entries[0].model_sha256 == entries[1].model_sha256


def test_a_killed_prepare_goes_on_where_it_was(tmp_path: Path, unbroken: Path) -> None:
    job = write_job(tmp_path)
    process = start(job)
    wait_for(process, "prepare", lines=2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(job)
    assert final_weights(tmp_path) == final_weights(unbroken)


def test_a_newest_checkpoint_that_rotted_is_skipped_and_said(tmp_path: Path) -> None:
    changes = {"checkpoint__every_steps": 4, "log__every": 1, "sft": None, "pretrain__steps": 400}
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(write_job(whole, **changes))
    job = write_job(tmp_path, **changes)
    process = start(job)
    wait_for(process, ": saved", lines=2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = head_of(tmp_path).checkpoints[0]
    weights = tmp_path / "runs/tiny" / newest.key / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert f"Skipped checkpoint {newest.key}" in finish(job)
    entries = [head_of(folder).checkpoints[0] for folder in (tmp_path, whole)]
    assert entries[0].model_sha256 == entries[1].model_sha256


@pytest.mark.parametrize("stage", ["evaluate", "publish"])
def test_sigkill_inside_a_later_stage_costs_no_training_and_changes_no_result(
    tmp_path: Path, published: Path, stage: str
) -> None:
    job = write_job(tmp_path, publish={"to": str(tmp_path / "model")}, **PUBLISHED)
    process = start(job)
    wait_for(process, f"{stage}: starts", lines=1)
    time.sleep(random.Random(stage).random() * 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "sft: done (finished" in finish(job)
    results = [head_of(folder).stages["evaluate"].result for folder in (published, tmp_path)]
    assert without_times(results[0]) == without_times(results[1])
    models = [(f / "model/model.safetensors").read_bytes() for f in (published, tmp_path)]
    assert models[0] == models[1]
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "model."))]
    assert not leftovers


def without_times(result: Any) -> Any:
    """`result` without the seconds that measuring took, which no two runs share."""
    if not isinstance(result, dict):
        return result
    return {k: without_times(v) for k, v in result.items() if "second" not in k}


def test_training_that_diverges_is_not_saved_as_good(tmp_path: Path) -> None:
    job = write_job(tmp_path, pretrain__lr=1e30, pretrain__min_lr=1e29, pretrain__clip=0, sft=None)
    process = start(job, "log.every=1")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in output
    assert not head_of(tmp_path).checkpoints


def test_run_job_can_be_called_from_python(tmp_path: Path) -> None:
    from pipeline.job.file import load_job

    job = load_job(write_job(tmp_path, pretrain__steps=4, sft=None), [])
    assert run_job(job, Options(), SilentDisplay()) == 0
    manifest = json.loads(
        (
            tmp_path / "runs/tiny" / head_of(tmp_path).checkpoints[0].key / "manifest.json"
        ).read_text()
    )
    assert {"model.safetensors", "optimizer.safetensors"} <= set(manifest["files"])
