"""Check, before anything else runs on a rented machine, that it is as good as the one paid for.

    python3 pipeline/rent/on_machine/boot_check.py [--any-build]
                                                exit 0: fine · exit 75: rent another

Hosts differ, and a bad host should cost only seconds. So this runs before anything is installed or
downloaded, and needs only the standard library and any Python from 3.8. Findings go to standard
error, and the torch to use (torch_builds.py) to standard output. If it is the image's, the first
line is its folder of packages. If it is another build than the pinned one, the first line is empty
and the second is such as "torch==2.14.1 cu126": what uv shall install, and its torch backend.
Without --any-build (a cluster needs one build for all nodes), a machine that needs another is bad.

If there are GPUs, a separate process (`boot_check.py --probe`) writes and reads back memory of each
GPU, using only the driver. Whether the GPUs compute is checked later, with torch (gpu_check.py).

Environment: SKYPILOT_NUM_GPUS_PER_NODE is the requested number of GPUs (an image for machines
without GPUs sets PION_EXPECT_GPUS=0), and PION_DISK_GB is the requested disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence  # noqa: UP035  (Python 3.8)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))  # this project is not installed yet

from pipeline.rent.on_machine.torch_builds import (
    Gpu,
    NoTorch,
    Torch,
    choose_torch,
    find_image_torch,
    numbers,
)

if __name__ == "__main__":
    del sys.path[0]  # only the image's packages count as its torch

ANOTHER_MACHINE = 75

# A file system reserves a part of the disk, so it shows less than the seller promises.
DISK_TOLERANCE = 0.9

PROBE = (sys.executable, __file__, "--probe")
PROBE_BYTES = 64 * 2**20
PROBE_SECONDS = 20
# Additional seconds for each further GPU. A driver that is not kept awake wakes them one by one.
PROBE_SECONDS_MORE = 5


class BadMachine(Exception):
    """Why this machine won't do. Another machine of the same kind may be fine."""


def check_machine(
    environment: Mapping[str, str],
    project: str,
    image_torch: Torch | None,
    *,
    any_build: bool = False,
) -> tuple[str, Torch]:
    """Describe this machine, and choose the torch to use (see `choose_torch`).

    Raises BadMachine.
    """
    found = [_check_disk(float(environment.get("PION_DISK_GB") or 0))]
    gpus = environment.get("PION_EXPECT_GPUS") or environment.get("SKYPILOT_NUM_GPUS_PER_NODE")
    asked = int(float(gpus or 0))
    seen = _list_gpus(asked) if asked else []
    try:
        torch, words = choose_torch(
            project, image_torch, seen[0] if seen else None, any_build=any_build
        )
    except NoTorch as why:
        raise BadMachine(str(why)) from None
    if seen:
        seconds = PROBE_SECONDS + PROBE_SECONDS_MORE * (asked - 1)
        cards = f"{len(seen)} × {seen[0].name} with driver {seen[0].driver}"
        found[:0] = [cards, try_gpus(PROBE, seconds)]
    return f"{', '.join(found)}, {words}", torch


def try_gpus(command: Sequence[str], seconds: float) -> str:
    """Run `command`, a probe of the GPUs in a separate process, and return what it found.

    Raises BadMachine if the probe says so, takes longer than `seconds`, or is killed by a signal.
    Any other failure, such as a Python error or no libcuda.so.1, proves nothing: torch will tell
    once it is installed.
    """
    try:
        done = _run(command, seconds)
    except subprocess.TimeoutExpired:
        raise BadMachine(
            f"writing and reading back memory of its GPU(s) hangs: no result after {seconds:g} s"
        ) from None
    except OSError as error:
        return f"GPU memory not tested ({error})"
    if done.returncode == ANOTHER_MACHINE:
        raise BadMachine(done.stdout.strip())
    if done.returncode < 0:
        raise BadMachine(
            "writing and reading back memory of its GPU(s) crashed: signal "
            f"{-done.returncode} ({signal.strsignal(-done.returncode)})"
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"GPU memory not tested ({said[-1]})"
    return done.stdout.strip()


def probe_gpus(cuda: Any, size: int = PROBE_BYTES) -> str:
    """Write and read back `size` bytes on every GPU. `cuda` is libcuda, as ctypes loads it.

    Raises BadMachine, or AttributeError if `cuda` lacks a function.
    """
    import ctypes

    _declare(cuda)

    def call(name: str, *arguments: Any, of: str = "CUDA") -> None:
        result = getattr(cuda, name)(*arguments)
        if result:
            raise BadMachine(f"{of} failed: {name} returned {_error_name(cuda, result)}")

    call("cuInit", 0)
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    written = os.urandom(size)
    for index in range(count.value):
        gpu = f"GPU {index}"
        device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        read = ctypes.create_string_buffer(size)
        call("cuDeviceGet", ctypes.byref(device), index, of=gpu)
        # The primary context: torch uses it too, and its calls are the same in all drivers.
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device, of=gpu)
        call("cuCtxSetCurrent", context, of=gpu)
        call("cuMemAlloc_v2", ctypes.byref(memory), size, of=gpu)
        call("cuMemcpyHtoD_v2", memory, written, size, of=gpu)
        call("cuMemcpyDtoH_v2", read, memory, size, of=gpu)
        if read.raw != written:
            raise BadMachine(f"GPU {index}'s memory returned different bytes than were written")
        # Errors of these calls don't matter: this process is about to end anyway.
        cuda.cuMemFree_v2(memory)
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    return f"memory of {count.value} GPU(s) written and read back"


def _declare(cuda: Any) -> None:
    """Give ctypes the types from cuda.h. Raises AttributeError if a function is missing."""
    from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

    arguments = {
        "cuInit": (c_uint,),
        "cuDeviceGetCount": (POINTER(c_int),),
        "cuDeviceGet": (POINTER(c_int), c_int),
        "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
        "cuDevicePrimaryCtxRelease_v2": (c_int,),
        "cuCtxSetCurrent": (c_void_p,),
        "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
        "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
        "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
        "cuMemFree_v2": (c_uint64,),
    }
    if hasattr(cuda, "cuGetErrorName"):
        arguments["cuGetErrorName"] = (c_int, POINTER(c_char_p))
    for name, types in arguments.items():
        function = getattr(cuda, name)
        function.argtypes, function.restype = types, c_int


def _error_name(cuda: Any, result: int) -> str:
    """Return "CUDA_ERROR_UNKNOWN (999)", or only the number if `cuda` has no name for it."""
    import ctypes

    name = ctypes.c_char_p()
    if not hasattr(cuda, "cuGetErrorName") or cuda.cuGetErrorName(result, ctypes.byref(name)):
        return f"error {result}"
    return f"{(name.value or b'error').decode()} ({result})"


def _check_disk(asked_gb: float) -> str:
    total_gb = shutil.disk_usage(Path.cwd()).total / 1e9
    if total_gb < DISK_TOLERANCE * asked_gb:
        raise BadMachine(f"its disk has {total_gb:.0f} GB, but {asked_gb:.0f} GB were requested")
    return f"{total_gb:.0f} GB disk"


def _list_gpus(asked: int) -> list[Gpu]:
    """Return the GPUs of this machine, at least `asked`. Raises BadMachine."""
    query = ("nvidia-smi", "--format=csv,noheader")
    try:
        done = _run([*query, "--query-gpu=name,driver_version,compute_cap"], 60)
        if done.returncode:  # an old driver does not know compute_cap
            done = _run([*query, "--query-gpu=name,driver_version"], 60)
    except FileNotFoundError:
        raise BadMachine(
            f"{asked} GPU(s) were requested, but it has no nvidia-smi: this container has no driver"
        ) from None
    except subprocess.TimeoutExpired:
        raise BadMachine("nvidia-smi did not answer for a minute") from None
    if done.returncode:
        raise BadMachine(f"nvidia-smi failed: {(done.stderr or done.stdout).strip()[-300:]}")
    lines = [line.split(", ") for line in done.stdout.strip().splitlines()]
    if len(lines) < asked:
        raise BadMachine(f"it has {len(lines)} GPU(s), but {asked} were requested")
    return [Gpu(line[0], line[1], numbers("".join(line[2:]))) for line in lines]


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `command` for at most `seconds`. Raises OSError and subprocess.TimeoutExpired.

    Unlike subprocess.run, this does not wait for a process that it kills: a process stuck in the
    driver can't be killed. The pipes keep such a process from holding this process's output open,
    which the boot script reads to the end.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def probe_main() -> int:
    """Run the probe of `try_gpus` in this process."""
    # Imported only here: a Python built without ctypes can still check everything else.
    import ctypes

    try:
        print(probe_gpus(ctypes.CDLL("libcuda.so.1")))
    except BadMachine as bad:
        print(bad)
        return ANOTHER_MACHINE
    return 0


def main() -> int:
    if sys.argv[1:] == ["--probe"]:
        return probe_main()
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    try:
        words, torch = check_machine(
            os.environ, project, find_image_torch(), any_build="--any-build" in sys.argv
        )
    except BadMachine as bad:
        print(
            f"boot check: this machine won't do: {bad}. Nothing was installed. Exiting with code "
            f"{ANOTHER_MACHINE}, so that another machine replaces it.",
            file=sys.stderr,
        )
        return ANOTHER_MACHINE
    print(f"boot check: {words}", file=sys.stderr)
    print(torch.folder or "")
    if torch.backend:
        print(f"torch=={torch.version} {torch.backend}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
