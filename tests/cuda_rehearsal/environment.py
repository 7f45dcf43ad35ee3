"""Whether the rehearsal can run on this machine, and how to start it.

The rehearsal is a separate process, because pretending a card changes torch for a whole process.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from pathlib import Path

import torch

from tests.paths import REPOSITORY
from tests.support.waiting import run_to_end

SHIM_SOURCE = Path(__file__).with_name("cuda_shim.c")
# The name of the driver's library. The dynamic linker then finds ours already loaded.
SHIM_NAME = "libcuda.so.1"

# All programs that the tests outside soak run, with their arguments.
SUITE: list[tuple[str, ...]] = [
    ("tests.cuda_rehearsal.rehearse", "suite"),
    ("tests.cuda_rehearsal.memory_traces", "suite"),
    ("tests.cuda_rehearsal.odd_cards",),
    ("tests.cuda_rehearsal.two_ranks", "suite"),
]


def pinned_torch() -> str:
    """Return the version of torch that pyproject.toml pins."""
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    pins: list[str] = pyproject["tool"]["uv"]["constraint-dependencies"]
    (version,) = (pin.removeprefix("torch==") for pin in pins if pin.startswith("torch=="))
    return version


def why_impossible() -> str | None:
    """Return why the rehearsal can't run on this machine; None if it can."""
    system, architecture = platform.system(), platform.machine()
    if (system, architecture) != ("Linux", "x86_64"):
        return f"the rehearsal needs Linux on x86-64, not {system} on {architecture}"
    if shutil.which("gcc") is None:
        return "the rehearsal needs gcc to compile cuda_shim.c; install gcc"
    version, pinned = str(torch.__version__), pinned_torch()
    if version.partition("+")[0] != pinned:
        return f"the rehearsal knows the insides of torch {pinned}, not of {version}; run `uv sync`"
    if torch.version.cuda is None:
        return f"torch {version} is built without CUDA; run `uv sync`"
    return None


def compile_shim(folder: Path) -> Path:
    """Compile cuda_shim.c into `folder`; return the library. Fails with what gcc said."""
    packages = Path(torch.__file__).parents[1]
    # Torch's wheels bring CUDA's headers. One header that they need is only in Triton's wheel.
    headers = [
        packages / "nvidia" / "cu13" / "include",
        packages / "triton" / "backends" / "nvidia" / "include",
    ]
    library = folder / SHIM_NAME
    options = ["-shared", "-fPIC", f"-Wl,-soname,{SHIM_NAME}"]
    includes = [f"-I{path}" for path in headers]
    run_to_end(["gcc", *options, *includes, "-o", library, SHIM_SOURCE], check=True)
    return library


def run_pretended(module: str, shim: Path, *arguments: str) -> str:
    """Run `python -m module arguments` with the shim preloaded; return what it prints."""
    # LD_PRELOAD can't have spaces, but the folder's path may have some. So the path is relative.
    variables = {
        "LD_PRELOAD": f"./{shim.name}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(shim.parent / "inductor"),
        "TRITON_CACHE_DIR": str(shim.parent / "triton"),
    }
    command = [sys.executable, "-m", module, *arguments]
    done = run_to_end(command, check=True, cwd=shim.parent, env=os.environ | variables)
    return done.stdout


def file_of(folder: Path, program: tuple[str, ...]) -> Path:
    """Return where the output of a program is kept."""
    return folder / f"{' '.join(program)}.txt"
