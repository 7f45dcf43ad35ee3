"""A run that learns by kto, from labels and from pairs, ends with the same bytes after kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.state.head import REFERENCE
from pipeline.state.rows.metrics import read_metrics
from pipeline.state.stores import open_store
from tests.runs.test_prefer import (
    EACH_STEP,
    STEPS,
    assert_same_run,
    reference_of,
)
from tests.support.preference_runs import killed_in_the_pass, prefer_job
from tests.support.whole_runs import (
    final_weights,
    finish,
    finish_after_kills,
    head_of,
    losses,
)

KTO = {"prefer__loss": "kto", "prefer__undesirable_weight": 1.5}


def labels_job(folder: Path, **changes: Any) -> Path:
    """Write the job with labelled answers instead of pairs: both sides of each, as two lines."""
    job = prefer_job(folder, **KTO, **changes)
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


def steps_of(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(open_store(str(folder / "runs")), "tiny", head_of(folder), "prefer")
    return [row for row in rows if "loss" in row]


def test_each_step_and_evaluation_says_its_distance_from_the_reference(unbroken: Path) -> None:
    steps = steps_of(unbroken)
    assert len(steps) == STEPS
    first = steps[0]
    assert first["z0"] == pytest.approx(0, abs=1e-4)  # the model is its own reference
    assert losses(unbroken, "prefer")[0] == pytest.approx(0.625, abs=0.13)  # between ½ and ¾
    assert all(step["z0"] >= 0 for step in steps)
    assert max(step["z0"] for step in steps) > 1e-4
    rows = read_metrics(open_store(str(unbroken / "runs")), "tiny", head_of(unbroken), "prefer")
    (held_out,) = [row for row in rows if "held_out_loss" in row]
    assert held_out["held_out_z0"] >= 0
    assert head_of(unbroken).stages["evaluate"].result["prefer"]


def test_the_reference_has_the_numbers_of_the_answers_of_others(unbroken: Path) -> None:
    folder = unbroken / "runs" / head_of(unbroken).data[REFERENCE]
    for split in ("train", "held_out"):
        own, others = (
            np.load(folder / f"{name}.starts.npy") for name in (split, f"{split}_mismatched")
        )
        assert len(own) == len(others)
        assert (np.diff(others) <= np.diff(own)).all()
        assert others[-1] > 0.9 * own[-1]


def test_sigkills_change_no_bit_of_the_weights(tmp_path: Path, unbroken: Path) -> None:
    finish_after_kills(tmp_path, labels_job(tmp_path, **EACH_STEP), "prefer", 2)
    assert_same_run(tmp_path, unbroken)
    assert [s["z0"] for s in steps_of(tmp_path)] == [s["z0"] for s in steps_of(unbroken)]


@pytest.mark.soak
def test_sigkills_in_the_pass_over_answers_of_others_change_no_bit(
    tmp_path: Path, unbroken: Path
) -> None:
    job = labels_job(tmp_path)
    folder = unbroken / "runs" / head_of(unbroken).data[REFERENCE]
    rows = [len(np.load(folder / f"{split}.starts.npy")) - 1 for split in ("train", "held_out")]
    chunks = sum(-(-count // 4) for count in rows)
    killed_in_the_pass(tmp_path, job, 2 * chunks + 4)  # after the second chunk of others
    output = finish(job)
    assert "reference pass: continuing train_mismatched after row 8" in output, output
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert reference_of(tmp_path) == reference_of(unbroken)


def test_pairs_are_taken_as_two_labelled_answers(tmp_path: Path) -> None:
    finish(prefer_job(tmp_path, **KTO))
    steps = steps_of(tmp_path)
    assert len(steps) == STEPS
    assert losses(tmp_path, "prefer")[0] == pytest.approx((1 + 1.5) / 4, abs=1e-5)
    assert all(0 <= step["accuracy"] <= 1 for step in steps)
