"""Check, before anything else runs on a rented machine, that it is as good as the one paid for.

    python3 pipeline/rent/on_machine/boot_check.py     exit 0: fine · exit 75: rent another

Hosts differ, and a bad host should cost only seconds. So this runs before anything is installed or
downloaded, and needs only the standard library and any Python from 3.8. Findings go to standard
error. If the image's torch satisfies this project, its folder of packages goes to standard output,
which saves a download of 3 GB; otherwise standard output stays empty.

If there are GPUs, a separate process (`boot_check.py --probe`) writes and reads back memory of each
GPU, using only the driver. Whether the GPUs compute is checked later, with torch (gpu_check.py).

Environment: SKYPILOT_NUM_GPUS_PER_NODE is the requested number of GPUs (an image for machines
without GPUs sets PION_EXPECT_GPUS=0), and PION_DISK_GB is the requested disk.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple  # noqa: UP035  (Python 3.8)

ANOTHER_MACHINE = 75

# The oldest driver for all programs of a CUDA major version:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
LEAST_DRIVER = {12: 525, 13: 580}

# A file system reserves a part of the disk, so it shows less than the seller promises.
DISK_TOLERANCE = 0.9

PROBE = (sys.executable, __file__, "--probe")
PROBE_BYTES = 64 * 2**20
PROBE_SECONDS = 20
# Additional seconds for each further GPU. A driver that is not kept awake wakes them one by one.
PROBE_SECONDS_MORE = 5

Version = Tuple[int, ...]  # noqa: UP006  (Python 3.8)


class BadMachine(Exception):
    """Why this machine won't do. Another machine of the same kind may be fine."""


@dataclass(frozen=True)
class Torch:
    """A torch: the folder it is installed in, its version, and the CUDA it was built for."""

    folder: Optional[Path]  # noqa: UP045  (Python 3.8)
    version: str
    cuda: Version


def check_machine(
    environment: Mapping[str, str], project: str, image_torch: Torch | None
) -> tuple[str, Torch]:
    """Describe this machine, and choose the torch to use. `project` is the text of pyproject.toml.

    Raises BadMachine.
    """
    torch = _pinned_torch(project)
    if image_torch is not None and _satisfies(image_torch, project):
        torch = image_torch
    found = [_check_disk(float(environment.get("PION_DISK_GB") or 0))]
    gpus = environment.get("PION_EXPECT_GPUS") or environment.get("SKYPILOT_NUM_GPUS_PER_NODE")
    asked = int(float(gpus or 0))
    if asked:
        seconds = PROBE_SECONDS + PROBE_SECONDS_MORE * (asked - 1)
        found[:0] = [_check_gpus(asked, torch), try_gpus(PROBE, seconds)]
    where = f"in this image's {torch.folder}" if torch.folder else "to be installed"
    return f"{', '.join(found)}, torch {torch.version} {where}", torch


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
        number = -done.returncode
        raise BadMachine(
            "writing and reading back memory of its GPU(s) crashed: signal "
            f"{number} ({signal.strsignal(number)})"
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


def find_image_torch() -> Torch | None:
    """Return the torch of this Python, without importing it; None if it has no CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        text = (folder / "version.py").read_text()
    except OSError:
        return None
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=]*= '([0-9.]+)'", text, re.MULTILINE)
    if version is None or cuda is None:
        return None
    return Torch(folder.parent, version[1], _numbers(cuda[1]))


def _satisfies(torch: Torch, project: str) -> bool:
    """Return whether this Python and `torch` meet pyproject.toml's requirements."""
    floor = re.search(r'"torch>=([0-9.]+)"', project)
    python = re.search(r'^requires-python = ">=([0-9.]+),<([0-9.]+)"', project, re.MULTILINE)
    if floor is None or python is None:
        return False
    right_python = _numbers(python[1]) <= sys.version_info[:2] < _numbers(python[2])
    return right_python and _numbers(torch.version) >= _numbers(floor[1])


def _pinned_torch(project: str) -> Torch:
    """Return the torch that would be installed."""
    torch = re.search(r'"torch==([0-9.]+)', project)
    cuda = re.search(r'"cuda-toolkit==([0-9.]+)', project)
    return Torch(
        None, torch[1] if torch else "of the newest version", _numbers(cuda[1] if cuda else "")
    )


def _check_disk(asked_gb: float) -> str:
    total_gb = shutil.disk_usage(Path.cwd()).total / 1e9
    if total_gb < DISK_TOLERANCE * asked_gb:
        raise BadMachine(f"its disk has {total_gb:.0f} GB, but {asked_gb:.0f} GB were requested")
    return f"{total_gb:.0f} GB disk"


def _check_gpus(asked: int, torch: Torch) -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = _run(query, 60)
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
    name, driver = lines[0][0], lines[0][-1]
    needed = LEAST_DRIVER.get(torch.cuda[0]) if torch.cuda else None
    if needed is not None and _numbers(driver)[:1] < (needed,):
        cuda = ".".join(map(str, torch.cuda[:2]))
        raise BadMachine(
            f"its driver {driver} is too old: torch {torch.version} is built for CUDA {cuda}, "
            f"which needs driver {needed} or newer"
        )
    return f"{len(lines)} × {name} with driver {driver}"


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `command` for at most `seconds`. Raises OSError and subprocess.TimeoutExpired.

    Unlike subprocess.run, this does not wait for a process that it kills: a process stuck in the
    driver can't be killed. The pipes keep such a process from holding this process's output open,
    which the boot script reads to the end.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace"
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _numbers(version: str) -> Version:
    """Return the leading numbers of a version to compare, such as (2, 13, 0) for "2.13.0a0+cu130";
    empty if there are none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


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
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    try:
        words, torch = check_machine(os.environ, project, find_image_torch())
    except BadMachine as bad:
        print(
            f"boot check: this machine won't do: {bad}. Nothing was installed. Exiting with code "
            f"{ANOTHER_MACHINE}, so that another machine replaces it.",
            file=sys.stderr,
        )
        return ANOTHER_MACHINE
    print(f"boot check: {words}", file=sys.stderr)
    print(torch.folder or "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
