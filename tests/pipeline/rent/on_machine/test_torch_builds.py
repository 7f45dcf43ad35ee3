"""Which torch a rented machine uses: its image's, the pinned one, or one that its driver runs."""

import re
import shutil
from pathlib import Path

import pytest

from pipeline.rent.on_machine.torch_builds import (
    BUILDS,
    Gpu,
    NoTorch,
    Torch,
    choose_torch,
    find_image_torch,
    numbers,
)
from tests.paths import REPOSITORY
from tests.support.waiting import run_to_end

PROJECT = """
requires-python = ">=3.11,<3.15"
    "torch>=2.9",
    "cuda-toolkit==13.2.2",
    "torch==2.15.0",
"""
A40 = (8, 6)
RTX_5090 = (12, 0)


def image(version, cuda):
    return Torch(Path("/image"), version, cuda)


@pytest.mark.parametrize(
    ("torch", "used"),
    [
        (image("2.9.0+cu128", (12, 8)), True),
        (image("2.14.0a0+nv26.10", (13, 1)), True),
        (image("2.8.0+cu128", (12, 8)), False),
        (None, False),
    ],
)
def test_an_images_torch_is_used_if_it_is_new_enough(torch, used):
    chosen, words = choose_torch(PROJECT, torch, None, any_build=True)
    assert (chosen.folder == Path("/image")) is used
    assert f"torch {chosen.version}" in words
    assert torch is None or torch.version in words, "why is this image's torch not used?"


@pytest.mark.parametrize(
    ("driver", "card", "build"),
    [
        ("580.65.06", A40, "2.15.0"),
        ("575.57.08", A40, "2.14.1 cu126"),
        ("525.60.13", A40, "2.14.1 cu126"),
        ("525.60.13", (), "2.14.1 cu126"),
        ("570.133.20", RTX_5090, "2.11.0 cu128"),
        ("580.65.06", RTX_5090, "2.15.0"),
    ],
)
def test_without_a_torch_in_the_image_the_driver_decides(driver, card, build):
    chosen, _ = choose_torch(PROJECT, None, Gpu("a card", driver, card), any_build=True)
    assert f"{chosen.version} {chosen.backend}".strip() == build


def test_a_driver_that_no_build_runs_on_is_refused_with_what_each_build_needs():
    with pytest.raises(NoTorch) as refused:
        choose_torch(PROJECT, None, Gpu("A40", "515.65.01", A40), any_build=True)
    assert str(refused.value) == (
        "no torch runs on its A40 with driver 515.65.01: "
        "torch 2.15.0 for CUDA 13.2 needs driver 580 or newer; "
        "torch 2.14.1 for CUDA 12.6 needs driver 525 or newer; "
        "torch 2.11.0 for CUDA 12.8 needs driver 525 or newer"
    )


def test_a_card_that_the_pinned_build_has_no_kernels_for_gets_another_build():
    v100 = Gpu("V100", "590.48.01", (7, 0))
    chosen, words = choose_torch(PROJECT, None, v100, any_build=True)
    assert chosen.backend == "cu126"
    assert "torch 2.15.0 for CUDA 13.2 has no kernels for compute capability 7.0" in words


def test_an_older_boot_script_gets_only_the_pinned_build():
    with pytest.raises(NoTorch, match=r"torch 2\.15\.0 for CUDA 13\.2 needs driver 580 or newer$"):
        choose_torch(PROJECT, None, Gpu("A40", "550.54.15", A40), any_build=False)


def test_an_old_driver_will_do_for_an_images_torch_that_was_built_for_it():
    torch = image("2.9.1+cu128", (12, 8))
    assert choose_torch(PROJECT, torch, Gpu("A40", "550.54.15", A40), any_build=False)[0] is torch


def test_an_images_torch_that_the_driver_does_not_run_is_not_used():
    torch = image("2.14.0+cu130", (13, 0))
    chosen, words = choose_torch(PROJECT, torch, Gpu("A40", "550.54.15", A40), any_build=True)
    assert chosen.backend == "cu126"
    assert "torch 2.14.0+cu130 for CUDA 13.0 needs driver 580" in words


def test_each_build_is_at_least_the_lowest_torch_and_at_most_the_pinned_one():
    project = (REPOSITORY / "pyproject.toml").read_text()
    (lowest,) = re.findall(r'"torch>=([0-9.]+)"', project)
    (pinned,) = re.findall(r'"torch==([0-9.]+)"', project)
    for build in BUILDS:
        assert numbers(lowest) <= numbers(build.version) <= numbers(pinned)
        assert build.backend == "cu" + "".join(map(str, build.cuda))


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_uv_knows_each_build(tmp_path):
    """uv checks the names of backends before it looks for a package."""
    for build in BUILDS:
        done = install_nothing(build.backend, tmp_path)
        assert done.returncode == 0, done.stderr
    assert "invalid value" in install_nothing("cu999", tmp_path).stderr


def install_nothing(backend, folder):
    nothing = folder / "requirements.txt"
    nothing.touch()
    command = ["uv", "pip", "install", "--dry-run", "--offline", "--torch-backend", backend]
    return run_to_end([*command, "--target", str(folder), "-r", str(nothing)])


def test_it_finds_the_torch_of_its_own_python():
    import torch

    found = find_image_torch()
    if torch.version.cuda is None:
        assert found is None, "a torch without CUDA is no use on a rented GPU"
    else:
        assert found is not None
        assert found.folder == Path(torch.__file__).parents[1]
        assert found.version == str(torch.__version__)
        assert found.cuda == tuple(map(int, torch.version.cuda.split(".")))


def test_it_reads_what_this_project_asks_for():
    project = (REPOSITORY / "pyproject.toml").read_text()
    torch, _ = choose_torch(project, None, None, any_build=False)
    assert torch.version[0].isdigit()
    assert torch.cuda, "no pin of cuda-toolkit: the oldest driver can't be told"
