"""The process that uploads checkpoints is killed at each of its steps. HEAD never lists the half of
a checkpoint, and the next save repeats the work."""

import itertools

import pytest
import torch

from pipeline.machine.kill_points import HALT_AT
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.retention import Keep
from pipeline.state.checkpoints.uploader import UploaderDied
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.states import read
from tests.support.waiting import wait_until

MODEL, OPTIMIZER = {"w": torch.ones(3)}, {"m": torch.zeros(3)}
# The files that `save` writes: two with tensors, state.json and config.json.
FILES = 4


@pytest.fixture
def claim(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return claim_run(RunState(open_store(str(tmp_path / "runs")), "demo"), Owner.me())


def kill_at_each(points, claim, folder, patch):
    """Kill the uploader at each of these points; then save without a kill."""
    point, number = next(points)
    patch.setenv(HALT_AT, f"{point}:{number}:{folder / f'{point}{number}'}")
    series = CheckpointSeries("pretrain", "d", lambda state: {"config.json": b"{}"}, Keep())
    saver = Checkpointer(claim, series)
    step = 0
    while True:
        step += 1
        saver.save(MODEL, OPTIMIZER, {"step": step, "next_row": step})
        halted = folder / f"{point}{number}"
        wait_until(halted.exists, f"the uploader comes to {halted.name}")
        saver._uploader._process.kill()
        following = next(points, None)
        if following is None:
            patch.delenv(HALT_AT)
        else:
            point, number = following
            patch.setenv(HALT_AT, f"{point}:{number}:{folder / f'{point}{number}'}")
        saver.wait()
        assert isinstance(saver.stats.outage, UploaderDied)
        assert not read(claim.state).checkpoints
        saver.stats.deaths = 0  # three in a row would end the run
        if following is None:
            break
    saver.save(MODEL, OPTIMIZER, {"step": step + 1, "next_row": step + 1})
    saver.close()
    (entry,) = read(claim.state).checkpoints
    assert entry.step == step + 1


def test_on_a_folder(claim, tmp_path, monkeypatch):
    points = zip(itertools.repeat("save"), range(1, FILES + 1))
    kill_at_each(iter(points), claim, tmp_path, monkeypatch)


@pytest.mark.soak
def test_on_a_bucket(s3_store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    claim = claim_run(RunState(open_store(s3_store), "demo"), Owner.me())
    points = itertools.product(("save", "upload"), range(1, FILES + 1))
    kill_at_each(points, claim, tmp_path, monkeypatch)
