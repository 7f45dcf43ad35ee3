"""What `pion run` checks about its machine before anything is started."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.machine.gpus import ListedGpu
from pipeline.run.preflight import (
    preflight,
    refuse_one_choice,
    store_that_goes_with_the_machine,
    what_gpus_are_used,
)
from tests.support.jobs import tiny_dict, tiny_job, write_tiny_data

RENTED = {"RUNPOD_POD_ID": "pod1"}
MANAGED = {**RENTED, "SKYPILOT_MANAGED_JOB_ID": "7"}
ON_THE_ROOT_DISK = "/no-such-folder/runs"


def test_a_managed_machines_own_disk_is_no_store() -> None:
    with pytest.raises(BadInput, match=r"lost with the machine.*Nothing was started.*store=s3://"):
        store_that_goes_with_the_machine(ON_THE_ROOT_DISK, MANAGED)


def test_a_machine_somebody_ends_by_hand_may_have_one_with_a_warning() -> None:
    (note,) = store_that_goes_with_the_machine(f"file://{ON_THE_ROOT_DISK}", RENTED)
    assert "copy what you want to keep" in note


@pytest.mark.parametrize("environment", [RENTED, MANAGED])
@pytest.mark.parametrize("url", ["s3://bucket/runs", "hf://user/repo"])
def test_a_store_elsewhere_outlives_every_machine(url: str, environment: dict[str, str]) -> None:
    assert store_that_goes_with_the_machine(url, environment) == []


def test_a_volume_may_outlive_the_machine() -> None:
    volume = Path("/dev/shm")
    if not volume.is_dir() or volume.stat().st_dev == Path("/").stat().st_dev:
        pytest.skip("/dev/shm is not a file system of its own here")
    assert store_that_goes_with_the_machine(str(volume / "runs"), MANAGED) == []


def test_at_home_a_folder_is_as_good_as_any() -> None:
    assert store_that_goes_with_the_machine(ON_THE_ROOT_DISK, {}) == []


def test_a_worker_needs_a_gpu_of_this_machine_unless_a_ray_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    job = Job.model_validate(tiny_dict(store=f"{tmp_path}/runs", hardware__workers=2))
    monkeypatch.setattr("pipeline.workers.cluster.gpu_count", lambda: 1)
    monkeypatch.delenv("PION_RAY_ADDRESS", raising=False)
    with pytest.raises(BadInput, match="this machine has 1 GPUs"):
        preflight(job)
    monkeypatch.setenv("PION_RAY_ADDRESS", "192.0.2.1:6399")
    assert preflight(job) == []


@pytest.mark.parametrize("variable", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_compiler_that_would_fail_at_a_space_is_found_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
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
def test_a_router_or_a_recipe_that_would_learn_nothing_is_refused(
    part: str, rest: dict[str, Any]
) -> None:
    def with_top_k(top_k: int, **changes: Any) -> Job:
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
def test_what_is_surprising_about_the_gpus_is_said(
    monkeypatch: pytest.MonkeyPatch, listed: list[ListedGpu], visible: str | None, note: str | None
) -> None:
    see(monkeypatch, listed, visible)
    notes = what_gpus_are_used(tiny_job(hardware__workers=2))
    assert [found[: len(note or "")] for found in notes] == ([] if note is None else [note])


@pytest.mark.parametrize("visible", ["2", "0,0", "GPU-ff", "0;1"])
def test_a_variable_that_names_no_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    see(monkeypatch, [A100, T4], visible)
    with pytest.raises(BadInput, match=r"names no GPU of this machine.*Nothing was started"):
        what_gpus_are_used(tiny_job())


def see(monkeypatch: pytest.MonkeyPatch, listed: list[ListedGpu], visible: str | None) -> None:
    """Let the driver list these GPUs, and let the user name some of them."""
    monkeypatch.setattr("pipeline.run.preflight.listed_gpus", lambda: listed)
    monkeypatch.delenv("PION_RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
