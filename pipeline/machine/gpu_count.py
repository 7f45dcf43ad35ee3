"""Count this machine's GPUs without importing torch, so that `pion run` answers at once."""

from __future__ import annotations

import ctypes
import os
import subprocess

from pipeline.machine.child_environment import without_secrets


def gpu_count() -> int:
    """Return how many NVIDIA GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [d for d in visible.split(",") if d.strip() not in ("", "-1")]
        # An image for GPUs, or a scheduler, may set the variable on a machine without GPUs.
        return len(named) if named and has_driver() else 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            env=without_secrets(),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def has_driver() -> bool:
    """Return whether this machine has NVIDIA's driver library, without which torch sees no GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
