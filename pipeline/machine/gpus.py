"""GPUs: those of this machine, counted without torch, and the types that clouds rent by name."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

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


# ---------------------------------------------------------------- types that can be rented

# The smallest share of the catalog's memory that CUDA can use. GPUs with ECC reserve the most.
CATALOG_SHARE = 0.92


@dataclass(frozen=True)
class GpuType:
    """A GPU that can be rented: `cuda` is what its device name contains, `gib` its usable GiB.

    `capability` is CUDA's, from NVIDIA's table of GPUs.
    """

    cuda: str
    gib: float
    capability: tuple[int, int]

    @property
    def memory(self) -> int:
        """The bytes that a training process may use."""
        return int(self.gib * 2**30)

    def dtype(self, asked: str) -> Literal["bfloat16", "float32"]:
        """Return the precision that a job's `hardware.dtype` means on this GPU."""
        from pion.train.hardware import gpu_flops  # torch takes seconds to import

        fast = asked == "auto" and gpu_flops(self.cuda, "bfloat16") is not None
        return "bfloat16" if fast or asked == "bfloat16" else "float32"


# SkyPilot's name → the GPU. The FLOP/s are in pion.train.hardware, under CUDA's name.
GPU_TYPES: dict[str, GpuType] = {
    "T4": GpuType("T4", 14.6, (7, 5)),
    "RTXA4000": GpuType("RTX A4000", 15.7, (8, 6)),
    "RTXA4500": GpuType("RTX A4500", 19.6, (8, 6)),
    "A10": GpuType("A10", 22.0, (8, 6)),
    "A10G": GpuType("A10G", 22.0, (8, 6)),
    "L4": GpuType("L4", 22.0, (8, 9)),
    "A30": GpuType("A30", 23.5, (8, 0)),
    "RTX3090": GpuType("RTX 3090", 23.5, (8, 6)),
    "RTX4090": GpuType("RTX 4090", 23.5, (8, 9)),
    "RTXA5000": GpuType("RTX A5000", 23.5, (8, 6)),
    "RTX5090": GpuType("RTX 5090", 31.3, (12, 0)),
    "A100": GpuType("A100", 39.4, (8, 0)),
    "A40": GpuType("A40", 44.3, (8, 6)),
    "L40": GpuType("L40", 44.4, (8, 9)),
    "L40S": GpuType("L40S", 44.4, (8, 9)),
    "RTX6000-Ada": GpuType("RTX 6000 Ada", 47.4, (8, 9)),
    "RTXA6000": GpuType("RTX A6000", 47.4, (8, 6)),
    "A100-80GB": GpuType("A100", 79.1, (8, 0)),
    "A100-80GB-SXM": GpuType("A100", 79.1, (8, 0)),
    "H100": GpuType("H100", 79.1, (9, 0)),
    "H100-SXM": GpuType("H100", 79.1, (9, 0)),
    "H100-NVL": GpuType("H100 NVL", 93.1, (9, 0)),
    "RTXPRO6000": GpuType("RTX PRO 6000 Blackwell Server", 94.9, (12, 0)),
    "RTXPRO6000-MaxQ": GpuType("RTX PRO 6000 Blackwell Max-Q", 94.9, (12, 0)),
    "RTXPRO6000-WK": GpuType("RTX PRO 6000", 94.9, (12, 0)),
    "H200": GpuType("H200", 139.8, (9, 0)),
    "H200-SXM": GpuType("H200", 139.8, (9, 0)),
    "B200": GpuType("B200", 178.3, (10, 0)),
}


_NO_KERNELS = re.compile(r"(V100|P100|P40|P4|K80|M60)\b")


def too_old(gpu: str) -> bool:
    """Return whether torch has no kernels for the GPU that SkyPilot calls `gpu`."""
    return _NO_KERNELS.match(gpu) is not None


def gpu_memory(gpu: str, catalog_gib: float | None = None) -> int | None:
    """Return the usable bytes of the GPU that SkyPilot calls `gpu`; None if they are unknown."""
    if gpu in GPU_TYPES:
        return GPU_TYPES[gpu].memory
    return None if catalog_gib is None else int(catalog_gib * CATALOG_SHARE * 2**30)
