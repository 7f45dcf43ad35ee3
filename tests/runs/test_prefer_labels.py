"""A run that learns from answers with labels ends with the same bytes after kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.state.rows.metrics import read_metrics
from pipeline.state.stores import open_store
from tests.runs.test_prefer import EACH_STEP, STEPS, assert_same_run
from tests.support.preference_runs import prefer_job
from tests.support.whole_runs import finish, finish_after_kills, head_of, losses

LABELS = {"prefer__loss": "apo-zero", "prefer__undesirable_weight": 1.5}


def labels_job(folder: Path, **changes: Any) -> Path:
    """Write the job with labelled answers instead of pairs: both sides of each, as two lines."""
    job = prefer_job(folder, **LABELS, **changes)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    lines = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return job


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(labels_job(folder))
    return folder


def test_each_step_learns_from_single_answers_by_their_weights(unbroken: Path) -> None:
    rows = read_metrics(open_store(str(unbroken / "runs")), "tiny", head_of(unbroken), "prefer")
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == STEPS
    assert losses(unbroken, "prefer")[0] == pytest.approx(0.625, abs=0.13)  # between ½ and ¾
    assert all(0 <= step["accuracy"] <= 1 for step in steps)
    assert head_of(unbroken).stages["evaluate"].result["prefer"]


def test_sigkills_change_no_bit_of_the_weights(tmp_path: Path, unbroken: Path) -> None:
    finish_after_kills(labels_job(tmp_path, **EACH_STEP), "prefer", 2)
    assert_same_run(tmp_path, unbroken)
