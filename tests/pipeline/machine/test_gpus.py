"""GPUs are counted without torch, and the environment is checked, not trusted."""

from __future__ import annotations

import pytest

from pipeline.machine import gpus as counting
from pipeline.machine.gpus import gpu_count, has_driver


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("0, 3", 2), ("GPU-8f2a,MIG-77", 2), ("", 0), ("-1", 0)]
)
def test_the_gpus_this_process_may_use_are_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setattr(counting, "has_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_a_machine_without_a_driver_has_none_whatever_is_said_to_be_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if has_driver():
        pytest.skip("this machine has NVIDIA's driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu_count() == 0


def test_a_machine_without_nvidias_tools_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    assert gpu_count() == 0
