"""GPUs are counted without torch, and the environment is checked, not trusted."""

import pytest

from pipeline.machine import gpus as counting
from pipeline.machine.gpus import gpu_count, has_driver


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("0, 3", 2), ("GPU-8f2a,GPU-77", 2), ("", 0), ("-1", 0)]
)
def test_the_gpus_this_process_may_use_are_those_that_are_visible(monkeypatch, visible, count):
    monkeypatch.setattr(counting, "has_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_a_machine_without_a_driver_has_none_whatever_is_said_to_be_visible(monkeypatch):
    if has_driver():
        pytest.skip("this machine has NVIDIA's driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu_count() == 0


def test_a_machine_without_nvidias_tools_has_none(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    assert gpu_count() == 0


A100 = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-c7b7)"
T4 = "GPU 1: Tesla T4 (UUID: GPU-11aa)"
SLICES = (
    "  MIG 1g.5gb      Device  0: (UUID: MIG-1f)",
    "  MIG 1g.5gb      Device  1: (UUID: MIG-2f)",
)


def list_as(monkeypatch, *lines, visible=None):
    """Let the driver list these GPUs."""
    monkeypatch.setattr(counting, "nvidia_smi", lambda *options: list(lines))
    monkeypatch.setattr(counting, "has_driver", lambda: True)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_the_driver_lists_cards_and_their_slices(monkeypatch):
    list_as(monkeypatch, A100, *SLICES, T4)
    assert counting.listed_gpus() == [
        counting.ListedGpu("NVIDIA A100-SXM4-40GB", "GPU-c7b7", ("MIG-1f", "MIG-2f")),
        counting.ListedGpu("Tesla T4", "GPU-11aa"),
    ]


@pytest.mark.parametrize(
    ("lines", "visible", "count"),
    [
        ((A100, T4), None, 2),
        ((A100, *SLICES), None, 1),
        ((A100, *SLICES), "MIG-1f,MIG-2f", 1),
        ((A100, T4), "0,-1,1", 1),
        ((), None, 0),
    ],
)
def test_cuda_gives_a_process_one_slice(monkeypatch, lines, visible, count):
    list_as(monkeypatch, *lines, visible=visible)
    assert gpu_count() == count


@pytest.mark.parametrize(
    ("visible", "wrong"),
    [
        ("0,1", None),
        ("GPU-c7,GPU-11aa", None),
        ("MIG-1f", None),
        ("", None),
        ("-1", None),
        ("0,-1,9", None),
        ("2", "2"),
        ("0,7", "7"),
        ("GPU-ff", "GPU-ff"),
        ("0;1", "0;1"),
        ("all", "all"),
        ("1,1", "1"),
    ],
)
def test_an_entry_that_names_no_gpu_is_found(monkeypatch, visible, wrong):
    list_as(monkeypatch, A100, *SLICES, T4)
    assert counting.names_no_gpu(visible, counting.listed_gpus()) == wrong
