"""Metrics in TensorBoard, Weights & Biases and Trackio, if the job asks for them."""

import importlib.util
import sys
import types

import pytest

from pion.errors import BadInput
from pipeline.rent.credentials import needed_secrets
from pipeline.training.stage_metrics import Trackers, check_trackers
from tests.support.jobs import tiny_job


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_found_out_before_work_starts(name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(BadInput, match=f"uv sync --extra {name}"):
        check_trackers(tiny_job(**{f"log__{name}": "somewhere"}))


def test_none_is_needed_where_none_is_asked_for():
    check_trackers(tiny_job())
    trackers = Trackers(tiny_job(), "pretrain")
    trackers.log([{"step": 1, "loss": 2.0}])
    trackers.close()


def test_numbers_and_rewinds_reach_tensorboard_under_their_stage(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(tiny_job(log__tensorboard=str(tmp_path)), "pretrain")
    trackers.log([{"step": 7, "loss": 2.5, "epoch": 3, "rows": [0, 4]}])
    trackers.rewound(8, "a loss of nan")
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tiny"))
    events.Reload()
    scalars = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert scalars == {"pretrain/loss": [(7, 2.5)], "pretrain/rewound_from": [(8, 8.0)]}


def test_an_attempt_continues_the_run_in_trackio_and_says_where_it_went_back(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    for name in ("trackio.utils.TRACKIO_DIR", "trackio.sqlite_storage.TRACKIO_DIR"):
        monkeypatch.setattr(name, tmp_path)
    job = tiny_job(log__trackio="project")
    first = Trackers(job, "pretrain")
    first.log([{"step": step, "loss": 2.0, "rows": [0, 4]} for step in (1, 2, 3)])
    first.rewound(4, "a loss of nan")
    first.close()
    second = Trackers(job, "pretrain")
    second.log([{"step": 2, "loss": 1.5}])
    second.close()
    assert [run.name for run in trackio.Api().runs("project")] == ["tiny"]
    rows = SQLiteStorage.get_logs("project", "tiny")
    losses = [row["pretrain/loss"] for row in rows if "pretrain/loss" in row]
    assert losses == [2.0, 2.0, 2.0, 1.5]
    assert [row["step"] for row in rows if row.get("pretrain/rewound_from") == 4] == [4]
    (note,) = SQLiteStorage.get_alerts("project")
    assert note["text"] == "pretrain step 4 gave a loss of nan: back to the last checkpoint"


def test_what_trackio_writes_must_outlive_a_rented_machine(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", types.ModuleType("trackio"))
    check_trackers(tiny_job(log__trackio="project"))
    with pytest.raises(BadInput, match="lost with a rented machine"):
        check_trackers(tiny_job(log__trackio="project"), rented=True)
    synced = tiny_job(log__trackio="project", log__trackio_space="user/trackio")
    check_trackers(synced, rented=True)
    assert needed_secrets(synced, {})["HF_TOKEN"] == "for log.trackio_space"


def test_a_space_without_a_project_is_a_mistake():
    with pytest.raises(ValueError, match="trackio: name a project"):
        tiny_job(log__trackio_space="user/trackio")
