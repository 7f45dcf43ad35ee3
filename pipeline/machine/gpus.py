"""The GPUs of this machine, counted without torch, and their names as clouds write them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess

from pipeline.machine.child_process import without_secrets


def gpu_count() -> int:
    """Return how many NVIDIA GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [d for d in visible.split(",") if d.strip() not in ("", "-1")]
        # An image for GPUs, or a scheduler, may set the variable on a machine without GPUs.
        return len(named) if named and has_driver() else 0
    return sum(line.startswith("GPU ") for line in nvidia_smi("-L"))


def nvidia_smi(*options: str) -> list[str]:
    """Return the lines that NVIDIA's tool prints; none if it is not here, fails or hangs."""
    command = ["nvidia-smi", *options]
    try:
        done = subprocess.run(
            command, env=without_secrets(), capture_output=True, timeout=20, check=True, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def has_driver() -> bool:
    """Return whether this machine has NVIDIA's driver library, without which torch sees no GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


# Names that differ from the driver's first word: RunPod's name first, other clouds' name last.
_NAMES = {
    "A100 80GB PCIe": ("A100-80GB",),
    "A100-SXM4-80GB": ("A100-80GB-SXM", "A100-80GB"),
    "H100 80GB HBM3": ("H100-SXM", "H100"),
    "H100 NVL": ("H100-NVL", "H100"),
    "H200": ("H200-SXM", "H200"),
    "V100-FHHL-16GB": ("V100-16GB-FHHL", "V100"),
    "V100-PCIE-16GB": ("V100-16GB-PCIe", "V100"),
    "V100-SXM2-16GB": ("V100-16GB-SXM2", "V100"),
    "V100-SXM2-32GB": ("V100-32GB-SXM2", "V100-32GB"),
    "RTX PRO 6000 Blackwell Workstation Edition": ("RTXPRO6000-WK", "RTXPRO6000"),
    "RTX PRO 6000 Blackwell Max-Q Workstation Edition": ("RTXPRO6000-MaxQ", "RTXPRO6000"),
}


def sky_names(name: str) -> tuple[str, ...]:
    """Return SkyPilot's names of the GPU that NVIDIA's driver calls `name`.

    The first is the name on RunPod, the last the name on other clouds: `NVIDIA H100 80GB HBM3` is
    H100-SXM on RunPod and H100 elsewhere.
    """
    words = re.sub(r"^((NVIDIA|AMD|GeForce|Tesla|Quadro) )+", "", name.strip())
    rtx = re.match(r"RTX (PRO )?(A?\d+)( SFF)?( Ti)?( SUPER)?( Ada)?", words)
    if words in _NAMES or rtx is None:
        return _NAMES.get(words) or (re.split("[ -]", words)[0],)
    pro, number, small, ti, super_, ada = ((part or "").strip() for part in rtx.groups())
    return ("-".join(filter(None, (f"RTX{pro}{number}{ti}{super_}", ada, small))),)
