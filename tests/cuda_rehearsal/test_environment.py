"""The rehearsal is skipped only where it is impossible, and says why."""

from __future__ import annotations

import dataclasses
import shutil
import sys

import pytest
import torch

from tests.cuda_rehearsal.environment import Machine, pinned_torch, this_machine, why_impossible

GOOD = Machine("Linux", "x86_64", "/usr/bin/gcc", "2.15.0+cu132", "13.2")


def test_nothing_is_skipped_on_linux_with_gcc_and_the_pinned_torch() -> None:
    version, _, build = str(torch.__version__).partition("+")
    here = sys.platform == "linux" and this_machine().architecture == "x86_64"
    if here and shutil.which("gcc") and version == pinned_torch() and build != "cpu":
        assert why_impossible(this_machine(), pinned_torch()) is None


@pytest.mark.parametrize("version", ["2.15.0", "2.15.0+cu132"])
def test_the_pinned_torch_from_any_index_is_rehearsed(version: str) -> None:
    assert why_impossible(dataclasses.replace(GOOD, torch=version), "2.15.0") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"system": "Darwin"}, "needs Linux on x86-64, not Darwin on x86_64"),
        ({"architecture": "aarch64"}, "needs Linux on x86-64, not Linux on aarch64"),
        ({"gcc": None}, "install gcc"),
        ({"torch": "2.16.0+cu132"}, "knows the insides of torch 2.15.0, not of 2.16.0"),
        ({"torch": "2.15.0+cpu", "cuda": None}, "built without CUDA"),
    ],
)
def test_a_machine_without_what_it_needs_is_told_why(
    change: dict[str, str | None], reason: str
) -> None:
    said = why_impossible(dataclasses.replace(GOOD, **change), "2.15.0")
    assert said is not None
    assert reason in said
