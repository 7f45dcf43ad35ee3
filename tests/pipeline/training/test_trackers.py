"""Metrics in TensorBoard and Weights & Biases, if the job asks for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.training.trackers import Trackers, check_trackers
from tests.support.jobs import tiny_job


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_found_out_before_work_starts(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(BadInput, match=f"uv sync --extra {name}"):
        check_trackers(tiny_job(**{f"log__{name}": "somewhere"}))


def test_none_is_needed_where_none_is_asked_for() -> None:
    check_trackers(tiny_job())
    trackers = Trackers(tiny_job(), "pretrain")
    trackers.log([{"step": 1, "loss": 2.0}])
    trackers.close()


def test_numbers_reach_tensorboard_under_their_stage(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(tiny_job(log__tensorboard=str(tmp_path)), "pretrain")
    trackers.log([{"step": 7, "loss": 2.5, "epoch": 3, "rows": [0, 4]}])
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tiny"))
    events.Reload()
    assert events.Tags()["scalars"] == ["pretrain/loss"]
    assert [(e.step, e.value) for e in events.Scalars("pretrain/loss")] == [(7, 2.5)]
