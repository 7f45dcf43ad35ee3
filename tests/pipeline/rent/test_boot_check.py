"""What a rented machine is refused for, before anything is installed on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pion.errors import Interrupted
from pipeline.rent.boot_check import (
    ANOTHER_MACHINE,
    BadMachine,
    Torch,
    check_machine,
    find_image_torch,
)

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "pipeline" / "rent" / "boot_check.py"
PROJECT = """
requires-python = ">=3.11,<3.15"
    "torch>=2.13",
    "cuda-toolkit==13.2.2",
    "torch==2.15.0",
"""

Machine = Callable[[str], dict[str, str]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """The environment of a machine whose nvidia-smi does what a line of shell says."""

    def with_nvidia_smi(shell: str) -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{shell}\n")
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SKYPILOT_NUM_GPUS_PER_NODE": "1"}

    return with_nvidia_smi


def boot(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What the boot script runs, by a Python that has no torch."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT)], env=environment, capture_output=True, text=True
    )


def test_a_machine_as_asked_for_goes_on(machine: Machine) -> None:
    done = boot(machine("echo 'NVIDIA A40, 580.95.05'") | {"PION_DISK_GB": "1"})
    assert done.returncode == 0
    assert "1 × NVIDIA A40 with driver 580.95.05" in done.stderr
    assert done.stdout.strip() == "", "nothing but the folder of the image's torch belongs here"


@pytest.mark.parametrize(
    ("nvidia_smi", "words"),
    [
        ("echo 'NVIDIA A40, 570.133.20'", "driver 570.133.20 is too old"),
        ("echo 'Unable to determine the device handle: GPU is lost' >&2; exit 15", "GPU is lost"),
        ("true", "it has 0 GPU(s), 1 were asked for"),
    ],
)
def test_a_machine_whose_gpu_cannot_be_used_is_left_for_another(
    machine: Machine, nvidia_smi: str, words: str
) -> None:
    done = boot(machine(nvidia_smi))
    assert done.returncode == ANOTHER_MACHINE
    assert words in done.stderr
    assert "Nothing was installed" in done.stderr


def test_a_machine_without_the_gpu_that_was_paid_for_is_left_for_another(tmp_path: Path) -> None:
    done = boot({"PATH": str(tmp_path), "SKYPILOT_NUM_GPUS_PER_NODE": "1"})
    assert done.returncode == ANOTHER_MACHINE
    assert "no nvidia-smi" in done.stderr


def test_a_machine_that_was_rented_without_gpus_needs_none(tmp_path: Path) -> None:
    assert boot({"PATH": str(tmp_path), "SKYPILOT_NUM_GPUS_PER_NODE": "0"}).returncode == 0


def test_a_disk_smaller_than_asked_for_is_left_for_another(tmp_path: Path) -> None:
    done = boot({"PATH": str(tmp_path), "PION_DISK_GB": "1000000"})
    assert done.returncode == ANOTHER_MACHINE
    assert "1000000 GB were asked for" in done.stderr


def test_its_exit_code_is_the_one_that_is_recovered() -> None:
    assert Interrupted.exit_code == ANOTHER_MACHINE


@pytest.mark.parametrize(
    ("torch", "used"),
    [
        (Torch(Path("/image"), "2.13.0+cu130", (13, 0)), True),
        (Torch(Path("/image"), "2.14.0a0+nv26.10", (13, 1)), True),
        (Torch(Path("/image"), "2.9.1+cu128", (12, 8)), False),
        (None, False),
    ],
)
def test_an_images_torch_is_used_if_it_is_new_enough(torch: Torch | None, used: bool) -> None:
    words, chosen = check_machine({}, PROJECT, torch)
    assert (chosen.folder == Path("/image")) is used
    assert chosen.version in words


def test_an_old_driver_will_do_for_an_images_torch_that_was_built_for_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = machine("echo 'NVIDIA A40, 550.54.15'")
    monkeypatch.setenv("PATH", environment["PATH"])
    image = Torch(Path("/image"), "2.13.0+cu126", (12, 6))
    assert check_machine(environment, PROJECT, image)[1] is image
    with pytest.raises(BadMachine, match=r"built for CUDA 13\.2, which needs driver 580"):
        check_machine(environment, PROJECT, None)


def test_it_finds_the_torch_of_its_own_python() -> None:
    import torch

    found = find_image_torch()
    if torch.version.cuda is None:
        assert found is None, "a torch without CUDA is no use on a rented GPU"
    else:
        assert found is not None
        assert found.folder == Path(torch.__file__).parents[1]
        assert found.version == str(torch.__version__)
        assert found.cuda == tuple(map(int, torch.version.cuda.split(".")))


def test_it_reads_what_this_project_asks_for() -> None:
    _, torch = check_machine({}, (REPOSITORY / "pyproject.toml").read_text(), None)
    assert torch.version[0].isdigit()
    assert torch.cuda, "no pin of cuda-toolkit: the oldest driver can't be told"
