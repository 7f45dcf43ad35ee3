"""The GPUs of this machine, counted without torch, and their names as clouds write them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from dataclasses import dataclass
from itertools import takewhile

from pipeline.machine.child_process import without_secrets

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class ListedGpu:
    """A GPU that the driver lists, and the ids of its MIG slices, if it is split into some."""

    name: str
    id: str  # GPU-8f2a…
    slices: tuple[str, ...] = ()  # MIG-77…


def gpu_count() -> int:
    """Return how many NVIDIA GPUs this process may use. CUDA gives a process one MIG slice."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        named = named_gpus(visible)
        # An image for GPUs, or a scheduler, may set the variable on a machine without GPUs.
        if not named or not has_driver():
            return 0
        return 1 if any(name.startswith("MIG-") for name in named) else len(named)
    gpus = listed_gpus()
    return min(1, len(gpus)) if any(gpu.slices for gpu in gpus) else len(gpus)


def named_gpus(visible: str) -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES that CUDA reads: those before -1."""
    entries = [entry.strip() for entry in visible.split(",")]
    return list(takewhile(lambda entry: entry != "-1", filter(None, entries)))


def listed_gpus() -> list[ListedGpu]:
    """Return the GPUs that the driver lists, whatever CUDA_VISIBLE_DEVICES says."""
    found: list[ListedGpu] = []
    for line in nvidia_smi("-L"):
        gpu = re.match(r"GPU \d+: (.+) \(UUID: (.+)\)", line)
        part = re.match(r"\s+MIG .*\(UUID: (.+)\)", line)
        if gpu:
            found.append(ListedGpu(gpu[1], gpu[2]))
        elif part and found:
            last = found[-1]
            found[-1] = ListedGpu(last.name, last.id, (*last.slices, part[1]))
    return found


def names_no_gpu(visible: str, listed: list[ListedGpu]) -> str | None:
    """Return the first entry of CUDA_VISIBLE_DEVICES that names none of the `listed` GPUs, or names
    one again. CUDA then ignores this entry and all after it, or sees no GPU."""
    ids = [*(gpu.id for gpu in listed), *(each for gpu in listed for each in gpu.slices)]
    named = named_gpus(visible)
    for place, entry in enumerate(named):
        if entry.isdecimal():
            known = int(entry) < len(listed)
        else:
            known = any(each.startswith(entry) for each in ids)
        if not known or entry in named[:place]:
            return entry
    return None


def nvidia_smi(*options: str) -> list[str]:
    """Return the lines that NVIDIA's tool prints; none if it is not here, fails or hangs."""
    command = ["nvidia-smi", *options]
    try:
        done = subprocess.run(
            command,
            env=without_secrets(),
            capture_output=True,
            timeout=20,
            check=True,
            encoding="utf-8",
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
