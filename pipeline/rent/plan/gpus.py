"""GPU types: SkyPilot's name, CUDA's name, and the memory and capability that CUDA reports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

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
        if asked == "auto":
            from pion.train.hardware import gpu_flops  # torch takes seconds to import

            return "float32" if gpu_flops(self.cuda, "bfloat16") is None else "bfloat16"
        return "bfloat16" if asked == "bfloat16" else "float32"


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
