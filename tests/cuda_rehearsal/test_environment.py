"""The rehearsal is skipped only where it is impossible, and says why."""

import platform
import shutil

import pytest
import torch

from tests.cuda_rehearsal.environment import pinned_torch, why_impossible

PINNED = pinned_torch()


@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (torch, "__version__", PINNED, None),
        (torch, "__version__", f"{PINNED}+cu132", None),
        (torch, "__version__", "2.1.0+cu132", f"the insides of torch {PINNED}, not of 2.1.0+cu132"),
        (torch.version, "cuda", None, "is built without CUDA"),
        (platform, "system", lambda: "Darwin", "needs Linux on x86-64, not Darwin on x86_64"),
        (platform, "machine", lambda: "aarch64", "needs Linux on x86-64, not Linux on aarch64"),
        (shutil, "which", lambda _: None, "install gcc"),
    ],
)
def test_a_machine_is_refused_for_what_it_lacks_alone(where, name, value, reason, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/gcc")
    monkeypatch.setattr(torch, "__version__", PINNED)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(where, name, value)
    said = why_impossible()
    assert said is None if reason is None else reason in str(said)
