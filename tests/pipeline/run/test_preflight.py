"""What `pion run` checks about its machine before anything is started."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.train.optimizer.optimizer import Optimizer
from pion.train.optimizers import OPTIMIZERS
from pipeline.job import Job
from pipeline.job.train_sections import settings_of
from pipeline.machine.folders import free_bytes
from pipeline.machine.gpus import ListedGpu
from pipeline.run.command import run_job
from pipeline.run.done_and_changed_stages import work_left
from pipeline.run.inputs import RunOptions
from pipeline.run.preflight import (
    checkpoint_bytes,
    preflight,
    refuse_one_choice,
    require_room,
    store_that_goes_with_the_machine,
    what_gpus_are_used,
)
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.jobs import SilentDisplay, tiny_dict, tiny_job, write_tiny_data
from tests.support.states import someone

SHARED_MEMORY = Path("/dev/shm")
OWN_FILE_SYSTEM = pytest.mark.skipif(
    not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == Path("/").stat().st_dev,
    reason="/dev/shm is part of another file system here",
)
RENTED = {"RUNPOD_POD_ID": "pod1"}
MANAGED = {**RENTED, "SKYPILOT_MANAGED_JOB_ID": "7"}
ON_THE_ROOT_DISK = "/no-such-folder/runs"


def test_a_folder_on_a_rented_machines_own_disk_is_refused_or_warned_of():
    with pytest.raises(BadInput, match=r"lost with the machine.*Nothing was started.*store=s3://"):
        store_that_goes_with_the_machine(ON_THE_ROOT_DISK, MANAGED)
    (note,) = store_that_goes_with_the_machine(f"file://{ON_THE_ROOT_DISK}", RENTED)
    assert "copy what you want to keep" in note


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        (ON_THE_ROOT_DISK, {}),  # at home
        ("s3://bucket/runs", MANAGED),
        ("hf://user/repo", RENTED),
        pytest.param("/dev/shm/runs", MANAGED, marks=OWN_FILE_SYSTEM),  # as a volume
    ],
)
def test_a_store_elsewhere_and_a_folder_at_home_outlive_every_machine(url, environment):
    assert store_that_goes_with_the_machine(url, environment) == []


def test_a_worker_needs_a_gpu_of_this_machine_unless_a_ray_has_others(tmp_path, monkeypatch):
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    job = Job.model_validate(tiny_dict(store=f"{tmp_path}/runs", hardware__workers=2))
    monkeypatch.setattr("pipeline.workers.cluster_size.gpu_count", lambda: 1)
    monkeypatch.delenv("PION_RAY_ADDRESS", raising=False)
    with pytest.raises(BadInput, match="this machine has 1 GPUs"):
        preflight(job)
    monkeypatch.setenv("PION_RAY_ADDRESS", "192.0.2.1:6399")
    assert preflight(job) == []


@pytest.mark.parametrize("variable", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_compiler_that_would_fail_at_a_space_is_found_before_the_start(
    tmp_path, monkeypatch, variable
):
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp")
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    job = Job.model_validate(tiny_dict(store=f"{tmp_path}/runs", hardware__compile=True))
    preflight(job)
    monkeypatch.setenv(variable, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(BadInput, match=r"a folder.*Nothing was started\. Set [A-Z_]+ to"):
        preflight(job)


@pytest.mark.parametrize(
    ("part", "rest"), [("experts", {"shared": 0}), ("primitives", {"rank": 2, "bands": [[0, 1]]})]
)
def test_a_router_or_a_recipe_that_would_learn_nothing_is_refused(part, rest):
    def with_top_k(top_k, **changes):
        changes[f"model__{part}"] = {"n": 4, "top_k": top_k, **rest}
        gate = {"model__activation": "gelu"} if part == "primitives" else {}
        return tiny_job(**gate, **changes)

    with pytest.raises(BadInput, match=rf"model\.{part}\.top_k: 1.*Nothing was started"):
        refuse_one_choice(with_top_k(1))
    refuse_one_choice(with_top_k(2))
    if part == "primitives":  # what a phase has taught may become sparse
        phases = [{"until": 0.5, "top_k": 4}, {"top_k": 1}]
        refuse_one_choice(with_top_k(1, pretrain__phases=phases))


A100, T4 = ListedGpu("NVIDIA A100", "GPU-c7"), ListedGpu("Tesla T4", "GPU-11")
SPLIT = ListedGpu("NVIDIA A100", "GPU-c7", ("MIG-1f", "MIG-2f"))


@pytest.mark.parametrize(
    ("listed", "visible", "note"),
    [
        ([], "7", None),  # nobody can tell
        ([A100, A100], None, None),
        ([A100, T4], "GPU-c7", None),
        ([A100, T4], None, "this machine has different GPUs (NVIDIA A100, Tesla T4)"),
        ([A100], "", "CUDA_VISIBLE_DEVICES is '', so this run uses the CPU, although"),
        ([A100], "-1", "CUDA_VISIBLE_DEVICES is '-1', so this run uses the CPU, although"),
        ([SPLIT], None, "the NVIDIA A100 is split into MIG slices. CUDA gives a process one"),
        ([SPLIT], "MIG-2f", "the NVIDIA A100 is split into MIG slices. CUDA gives a process one"),
    ],
)
def test_what_is_surprising_about_the_gpus_is_said(monkeypatch, listed, visible, note):
    see(monkeypatch, listed, visible)
    notes = what_gpus_are_used(tiny_job(hardware__workers=2))
    assert [found[: len(note or "")] for found in notes] == ([] if note is None else [note])


@pytest.mark.parametrize("visible", ["2", "0,0", "GPU-ff", "0;1"])
def test_a_variable_that_names_no_gpu_is_refused(monkeypatch, visible):
    see(monkeypatch, [A100, T4], visible)
    with pytest.raises(BadInput, match=r"names no GPU of this machine.*Nothing was started"):
        what_gpus_are_used(tiny_job())


def see(monkeypatch, listed, visible):
    """Let the driver list these GPUs, and let the user name some of them."""
    monkeypatch.setattr("pipeline.run.preflight.listed_gpus", lambda: listed)
    monkeypatch.delenv("PION_RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


# ---------------------------------------------------------------- room on the disk


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_has_the_learned_weights_and_the_optimizers_state(optimizer):
    job = tiny_job(pretrain__optimizer=optimizer, model__vocab_size=320)
    model = Decoder(job.model_config_resolved())
    saved = Optimizer(model, settings_of(job.section("pretrain"))).state_tensors()
    weights, moments = checkpoint_bytes(job, "pretrain")
    assert weights == sum(4 * p.numel() for p in model.parameters())
    assert moments == sum(tensor.nbytes for tensor in saved.values())


class Disk:
    """A tiny job on a disk with `free` bytes."""

    def __init__(self, folder, monkeypatch):
        write_tiny_data(folder)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("pipeline.run.preflight.free_bytes", lambda folder: self.free)
        self.job = Job.model_validate(tiny_dict(store=f"{folder}/runs"))
        self.run = RunState(open_store(self.job.store), self.job.name)
        self.needed = sum(checkpoint_bytes(self.job, "pretrain"))
        self.free: int | None = self.needed

    def require(self, until=None):
        require_room(self.job, self.run, work_left(self.job, self.run), until)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    return Disk(tmp_path, monkeypatch)


def test_a_run_without_room_for_one_checkpoint_is_refused_before_anything_is_started(
    disk, tmp_path
):
    disk.free = 100_000
    with pytest.raises(BadInput) as refused:
        run_job(disk.job, RunOptions(), SilentDisplay())
    words = str(refused.value)
    assert f"The disk of {tmp_path}/runs/tiny/checkpoints has 100 kB free" in words
    assert "one checkpoint of pretrain takes 310 kB: 103 kB of weights and 207 kB" in words
    assert "of the optimizer's state. Nothing was started. Free some space there, or set" in words
    assert disk.run.read() is None


def test_a_disk_with_just_enough_room_is_not_refused(disk):
    disk.require()
    disk.free = None  # the file system does not say
    disk.require()
    disk.free = disk.needed - 1
    disk.require(until="prepare")
    with pytest.raises(BadInput):
        disk.require()


def test_what_the_run_itself_deletes_makes_room(disk, tmp_path):
    disk.free = disk.needed - 1
    claim_run(disk.run, someone()).release()
    kept = tmp_path / "runs" / "tiny" / "checkpoints" / "pretrain" / "10-1"
    kept.mkdir(parents=True)
    with pytest.raises(BadInput):
        disk.require()
    (kept / ".model.safetensors.part").write_bytes(b"x")  # of a save that was killed
    disk.require()


def test_the_free_room_of_a_folder_that_is_not_there_is_its_parents(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: True)  # it was deleted just after
    free = free_bytes(tmp_path / "a" / "b")
    assert free > 0
