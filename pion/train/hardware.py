"""Find out what a machine can do (precision, arithmetic, memory), and apply a plan to it."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import re
import time
import warnings
from pathlib import Path
from typing import Literal

import torch

from pion.errors import BadInput
from pion.model.attention.masks import use_flex
from pion.train.card import require_kernels, why_no_cuda
from pion.train.settings import ComputePlan
from pion.usable_cores_and_memory import available_bytes, memory_limits, usable_cores

# Dense TFLOP/s from NVIDIA's data sheets and architecture white papers: in bf16 on tensor cores
# that accumulate in fp32 (None: no bf16), and in fp32 without tensor cores. Data sheets often quote
# twice the dense figure, for 2:4 sparsity. The first entry whose words are in the device's name is
# used.
GPU_TFLOPS: tuple[tuple[str, float | None, float], ...] = (
    ("B300", 2250.0, 75.0),
    ("GB200", 2500.0, 80.0),
    ("B200", 2250.0, 75.0),
    ("GH200", 989.4, 66.9),
    ("H200 NVL", 835.0, 60.0),
    ("H200", 989.4, 66.9),
    ("H100 NVL", 835.0, 60.0),
    ("H100 PCIe", 756.4, 51.2),
    ("H100", 989.4, 66.9),
    ("H20", 148.0, 44.0),
    ("A100", 311.9, 19.5),
    ("A10G", 70.0, 35.0),
    ("RTX A6000", 154.8, 38.7),
    ("RTX A5000", 111.1, 27.8),
    ("RTX A4500", 94.6, 23.7),
    ("RTX A4000", 76.7, 19.2),
    ("A40", 149.7, 37.4),
    ("A30", 165.0, 10.3),
    ("A10", 125.0, 31.2),
    ("L40S", 362.1, 91.6),
    ("L40", 181.1, 90.5),
    ("L4", 121.0, 30.3),
    ("RTX 6000 Ada", 364.2, 91.1),
    ("RTX PRO 6000 Blackwell Max-Q", 438.9, 109.7),
    # Its data sheet rounds bf16 to 1 PFLOP/s with sparsity. On this chip, bf16 is 4 × fp32.
    ("RTX PRO 6000 Blackwell Server", 480.0, 120.0),
    ("RTX PRO 6000", 503.8, 126.0),
    ("RTX 5090", 209.5, 104.8),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71.0, 35.6),
    ("V100", None, 15.7),
    ("T4", None, 8.1),
)


# Measuring a peak takes at most about so long.
MEASURED_SECONDS = 2.0
# Times of products that differ by less than this factor are the same.
AGREE = 1.02
# A product that takes longer, as in emulated bfloat16, is no better measured if repeated.
LONG_SECONDS = 0.1
# How many products of each precision are compared, in about how many seconds at most.
TURNS, TURNS_SECONDS = 64, 0.25
# Emulated bf16 has less of fp32's speed: 0.24 was measured on AVX-512, and 0.015 on AVX2. A Xeon
# without AMX has 0.57.
EMULATED = 0.35
# Of one function of Pion; torch then refuses to compile it again.
MOST_COMPILATIONS = 128


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to train on; for "auto", CUDA if there is a CUDA device.

    Raises BadInput if the named device does not exist or can't train, or if torch has no kernels
    for it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {name!r}: training runs on cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            f"device {name!r}: torch {torch.__version__} sees no CUDA device on this machine: "
            f"{why_no_cuda()}. Check `nvidia-smi`, or use device auto"
        )
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        require_kernels(device)
    return device


def device_name(device: torch.device) -> str:
    """Return the device's name for people: `NVIDIA A40`, `CPU, 2 cores (AMD EPYC …)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = _processor().get("model name") or platform.processor() or platform.machine()
    return f"CPU, {usable_cores()} cores ({model})"


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions that multiply bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    fields = _processor()
    sets = fields.get("flags", fields.get("features", "")).split()  # x86, Arm
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(sets)


@functools.cache
def bf16_speedup() -> float:
    """Return how many times as fast as in fp32 this CPU multiplies matrices in bf16.

    Its instructions don't tell. An Intel Xeon with AVX-512 BF16 but without AMX is slower in bf16,
    an AMD EPYC faster. Some images hold oneDNN to AVX2 (ONEDNN_MAX_CPU_ISA), which then emulates
    bf16. The products take turns, in one thread, and are shorter than the turns of other programs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    full = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    factors = {name: full.to(torch_dtype(name)) for name in ("float32", "bfloat16")}
    best = dict.fromkeys(factors, math.inf)
    began = time.perf_counter()
    for turn in range(TURNS):
        for name, factor in factors.items():
            start = time.perf_counter()
            factor @ factor
            best[name] = min(best[name], time.perf_counter() - start)
        if turn > 1 and time.perf_counter() - began > TURNS_SECONDS:
            break
    torch.set_num_threads(threads)
    return best["float32"] / best["bfloat16"]


def pick_dtype(
    name: Literal["auto", "bfloat16", "float32"],
    device: torch.device,
    *,
    generating: bool = False,
) -> Literal["bfloat16", "float32"]:
    """Return the precision to compute in; for "auto", bf16 where it is faster.

    Generation reads all weights for each token, and bf16 weights are half as many bytes: it is
    faster wherever bf16 is not emulated.
    """
    if name != "auto":
        return name
    least = EMULATED if generating else 1.0
    faster = has_bf16(device) and (device.type == "cuda" or bf16_speedup() > least)
    return "bfloat16" if faster else "float32"


def words_about_cpu(device: torch.device, asked: str) -> str | None:
    """Return in which precision a CPU with bf16 computes if `asked` is "auto", and why."""
    if device.type == "cuda" or asked != "auto" or not has_bf16(device):
        return None
    chosen = "bf16" if pick_dtype("auto", device) == "bfloat16" else "fp32"
    return f"computes in {chosen}: this CPU has {bf16_speedup():.2g} times fp32's speed in bf16"


def pick_residual(
    name: Literal["auto", "bfloat16", "float32"],
    dtype: Literal["bfloat16", "float32"],
    device: torch.device,
) -> Literal["bfloat16", "float32"]:
    """Return the precision of the hidden states between blocks, for that of the computation.

    For "auto", bf16 on CUDA: a model learns as well (docs/performance.md). A CPU gains
    nothing by it.
    """
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return "bfloat16" if name == dtype == "bfloat16" else "float32"


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that a plan calls "bfloat16" or "float32"."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def configure(plan: ComputePlan) -> None:
    """Apply the plan's choices for the whole process: threads, determinism, and what compiles."""
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    if plan.deterministic:
        # cuBLAS reads this variable once. Without the variable, torch refuses to multiply matrices.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if plan.deterministic != torch.are_deterministic_algorithms_enabled():
        # This call imports torch's compiler and takes seconds, so skip it if nothing changes.
        torch.use_deterministic_algorithms(plan.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    use_flex(plan.flex_attention)
    if plan.compile:
        _configure_compiler(plan)


def _configure_compiler(plan: ComputePlan) -> None:
    # Imported here, because importing torch's compiler takes seconds.
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # What a plan computes in fp32 is meant to have all of its digits, such as routers.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # Layers of different structure and rows of different lengths each need a compilation.
    dynamo.recompile_limit = MOST_COMPILATIONS
    if compiles_deterministically():
        inductor.deterministic = plan.deterministic
    # Whether to pad the operands of a product is found out by timing, so the next attempt might
    # compute another way.
    inductor.shape_padding = False
    # A result that several kernels use is computed again in each of them if it needs at most so
    # many reads, and written once otherwise. The backward pass of queries and keys needs more reads
    # than torch's 4, and would take three kernels.
    inductor.realize_reads_threshold = 8
    # Each weight of a block is cast for itself. One kernel for several casts starts faster.
    if hasattr(inductor, "combo_kernels_pointwise_only"):
        combined = combines_kernels(plan)
        if inductor.combo_kernels != combined:
            torch.compiler.reset()  # what was compiled otherwise in this process
        inductor.combo_kernels = combined
        inductor.combo_kernels_pointwise_only = True


def combines_kernels(plan: ComputePlan) -> bool:
    """Return whether this torch's compiler makes combo kernels for the plan."""
    from torch._inductor import config as inductor

    supported = hasattr(inductor, "combo_kernels_pointwise_only")
    return supported and plan.combo_kernels and plan.device.startswith("cuda")


def compiles_deterministically() -> bool:
    """Return whether this torch's compiler can choose kernels without timing them."""
    from torch._inductor import config as inductor

    return hasattr(inductor, "deterministic")


def pick_compile(
    setting: bool | Literal["auto"], device: torch.device, *, deterministic: bool
) -> bool:
    """Return whether to compile; for "auto", on CUDA. A CPU gains little for the time it takes.

    Nothing is compiled where results must be deterministic and the compiler's are not.
    """
    wanted = device.type == "cuda" if setting == "auto" else setting
    return wanted and (not deterministic or compiles_deterministically())


def cuda_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of a GPU, which decides what kernels it has."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def total_memory(device: torch.device) -> int:
    """Return the bytes that training may use: the GPU's, or the limit of machine and container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min([available_bytes() + _resident_bytes(), *memory_limits()])


def memory_in_use(device: torch.device) -> int:
    """Return the peak bytes allocated on a CUDA device, or this process's resident bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident_bytes()


def peak_flops(device: torch.device, dtype: str, reached: float = 0.0) -> float:
    """Return the FLOP/s that count as 100% MFU: from a known GPU's data sheet, else measured.

    If training has `reached` more than was measured, the device was busy with other programs: the
    peak is measured again, and is at least what was reached.
    """
    if device.type == "cuda" and (flops := gpu_flops(torch.cuda.get_device_name(device), dtype)):
        return flops
    case = (device, dtype, torch.get_num_threads())
    if case not in _peaks or _peaks[case] < reached:
        _peaks[case] = max(_peaks.get(case, 0.0), _measured_flops(device, dtype), reached)
    return _peaks[case]


def gpu_flops(name: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of the GPU that CUDA calls `name`; None if the GPU is unknown.

    A MIG slice has the name of its GPU, but only a share of its peak.
    """
    if " MIG " in name:
        return None
    for pattern, bf16, fp32 in GPU_TFLOPS:
        if re.search(rf"\b{pattern}\b", name):
            tflops = bf16 if dtype == "bfloat16" else fp32
            return None if tflops is None else tflops * 1e12
    return None


@functools.cache
def _processor() -> dict[str, str]:
    """Return what Linux says about the first core, by the names of its fields; {} if nothing."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _resident_bytes() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# The highest peak measured so far; a CPU's depends on the number of threads.
_peaks: dict[tuple[torch.device, str, int], float] = {}


def _measured_flops(device: torch.device, dtype: str) -> float:
    """Return the FLOP/s of a square matmul: the best of many, because the machine may be busy.

    A CPU's matmul is so short that some of many have the cores for themselves: other programs take
    turns of a few milliseconds. Next to eleven other programs on two cores, the best of 16 products
    of 1,024² reached 21 GFLOP/s, and the best of 64 of 512² reached 174.

    Products that had the cores for themselves take equally long, and disturbed ones do not: if the
    fastest four agree, more of them would find nothing. On a quiet CPU, about twelve are enough.
    """
    size, most = (4096, 8) if device.type == "cuda" else (512, 64)
    # A GPU that multiplies ones switches few transistors, so its clock is higher than in training.
    a = torch.empty(size, size, device=device)
    a = a.normal_(generator=torch.Generator(device).manual_seed(0)).to(torch_dtype(dtype))
    a @ a
    times: list[float] = []
    began = time.perf_counter()
    for _ in range(most):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        time_now = time.perf_counter()
        times = sorted([*times, time_now - start])
        if times[0] > LONG_SECONDS:
            break
        if len(times) >= 8 and (
            times[3] <= AGREE * times[0] or time_now - began > MEASURED_SECONDS
        ):
            break
    return 2.0 * size**3 / times[0]
