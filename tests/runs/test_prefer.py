"""A run whose last stage learns from preferences keeps every promise that other runs keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.meddling import with_slow_steps
from tests.support.preference_runs import PREFER, prefer_job
from tests.support.whole_runs import (
    ends_with,
    final_weights,
    finish,
    head_of,
    kill,
    rows_trained,
    start,
    wait_for,
)

SIMPO = {"prefer__loss": "simpo"}
STEPS = PREFER["steps"]
EACH_STEP = {"checkpoint__every_steps": 1, "log__every": 1}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(prefer_job(folder, **SIMPO, publish={"to": "model"}))
    return folder


def test_a_job_learns_from_pairs_after_fine_tuning_and_publishes_the_result(
    unbroken: Path,
) -> None:
    head = head_of(unbroken)
    assert list(head.data) == ["pretrain", "sft", "prefer"]
    weights = final_weights(unbroken)
    assert len(set(weights.values())) == len(weights) == 3
    results = head.stages["evaluate"].result
    assert results["prefer"]["response_loss"] != results["sft"]["response_loss"]
    assert (unbroken / "model/model.safetensors").is_file()
    assert (
        "chat_template" in (unbroken / "model/tokenizer_config.json").read_text()
        or (unbroken / "model/chat_template.jinja").is_file()
    )
    card = (unbroken / "model/README.md").read_text()
    assert "`pairs.jsonl` (jsonl files) (preferences)" in card
    assert "preference tuning" in card


def test_every_row_of_pairs_is_trained_once_in_order(unbroken: Path) -> None:
    assert rows_trained(unbroken, "prefer") == [[4 * s, 4 * s + 4] for s in range(STEPS)]


def test_sigkills_change_no_bit_of_the_weights(tmp_path: Path, unbroken: Path) -> None:
    job = prefer_job(tmp_path, **SIMPO, **EACH_STEP)
    slow = with_slow_steps(tmp_path)
    for _ in range(2):
        process = start(job, env=slow.environment())
        wait_for(process, "prefer: starts")
        wait_for(process, ": saved")
        kill(process)
    slow.check()
    output = finish(job)
    assert "prefer: starts (continues after step" in output, output
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert rows_trained(tmp_path, "prefer") == rows_trained(unbroken, "prefer")


def test_another_loss_needs_a_redo_of_its_stage_alone(tmp_path: Path) -> None:
    job = prefer_job(tmp_path, **SIMPO)
    finish(job)
    before = final_weights(tmp_path)
    output = ends_with(2, start(job, "prefer.beta=1.0"))
    assert "prefer.beta: 2.5 → 1.0" in output
    assert "--redo prefer" in output
    finish(job, "prefer.beta=1.0", "--redo", "prefer")
    after = final_weights(tmp_path)
    assert after["prefer"] != before["prefer"]
    assert {stage: after[stage] for stage in ("pretrain", "sft")} == {
        stage: before[stage] for stage in ("pretrain", "sft")
    }


LABELS: list[dict[str, Any]] = [
    {"prompt": f"What did {n} see?", "completion": "the cat sat.", "label": n % 2 == 0}
    for n in range(20)
]


def test_single_answers_are_refused_by_a_loss_of_pairs_before_training(tmp_path: Path) -> None:
    job = prefer_job(tmp_path, **SIMPO)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LABELS))
    output = ends_with(2, start(job))
    assert "prefer.sources.0: these are single answers with labels" in output
    assert "prefer.loss=apo-zero" in output
    assert "pretrain: starts" not in output
