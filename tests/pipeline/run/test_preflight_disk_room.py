"""A run does not start on a disk that can't hold one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.train.optimizer.optimizer import Optimizer
from pipeline.job import Job
from pipeline.job.train_sections import settings_of
from pipeline.machine.folders import free_bytes
from pipeline.run.command import run_job
from pipeline.run.preflight import checkpoint_bytes, require_room
from pipeline.run.stage_plan import work_left
from pipeline.run.start import RunOptions
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.jobs import SilentDisplay, tiny_dict, tiny_job, write_tiny_data
from tests.support.states import someone


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_has_the_learned_weights_and_the_optimizers_state(optimizer: str) -> None:
    job = tiny_job(pretrain__optimizer=optimizer, model__vocab_size=320)
    model = Decoder(job.model_config_resolved())
    saved = Optimizer(model, settings_of(job.section("pretrain"))).state_tensors()
    weights, moments = checkpoint_bytes(job, "pretrain")
    assert weights == sum(4 * p.numel() for p in model.parameters())
    assert moments == sum(4 * tensor.numel() for tensor in saved.values())


class Disk:
    """A tiny job on a disk with `free` bytes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_tiny_data(folder)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("pipeline.run.preflight.free_bytes", lambda folder: self.free)
        self.job = Job.model_validate(tiny_dict(store=f"{folder}/runs"))
        self.run = RunState(open_store(self.job.store), self.job.name)
        self.needed = sum(checkpoint_bytes(self.job, "pretrain"))
        self.free: int | None = self.needed

    def require(self, until: str | None = None) -> None:
        require_room(self.job, self.run, work_left(self.job, self.run), until)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def test_a_run_without_room_for_one_checkpoint_is_refused_before_anything_is_started(
    disk: Disk, tmp_path: Path
) -> None:
    disk.free = 100_000
    with pytest.raises(BadInput) as refused:
        run_job(disk.job, RunOptions(), SilentDisplay())
    words = str(refused.value)
    assert f"The disk of {tmp_path}/runs/tiny/checkpoints has 100 kB free" in words
    assert "one checkpoint of pretrain takes 310 kB: 103 kB of weights and 207 kB" in words
    assert "of the optimizer's state. Nothing was started. Free some space there, or set" in words
    assert disk.run.read() is None


def test_a_disk_with_just_enough_room_is_not_refused(disk: Disk) -> None:
    disk.require()
    disk.free = None  # the file system does not say
    disk.require()
    disk.free = disk.needed - 1
    disk.require(until="prepare")
    with pytest.raises(BadInput):
        disk.require()


def test_what_the_run_itself_deletes_makes_room(disk: Disk, tmp_path: Path) -> None:
    disk.free = disk.needed - 1
    claim_run(disk.run, someone()).release()
    kept = tmp_path / "runs" / "tiny" / "checkpoints" / "pretrain" / "10-1"
    kept.mkdir(parents=True)
    with pytest.raises(BadInput):
        disk.require()
    (kept / ".model.safetensors.part").write_bytes(b"x")  # of a save that was killed
    disk.require()


def test_the_free_room_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(
    tmp_path: Path,
) -> None:
    free = free_bytes(tmp_path / "a" / "b")
    assert free is not None
    assert free > 0
