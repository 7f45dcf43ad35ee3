"""Choose the torch of a rented machine: the image's, the pinned one, or one that its driver runs.

Runs before anything is installed, so it needs only the standard library and any Python from 3.8.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Tuple  # noqa: UP035  (Python 3.8)

Version = Tuple[int, ...]  # noqa: UP006  (Python 3.8)

# The oldest driver for all programs of a CUDA major version, read on 2026-11-22:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
# The compute capabilities for which torch's builds for CUDA 13 have kernels: from Turing (T4).
CUDA_13_CAPABILITIES = ((7, 5), (12, 1))


@dataclass(frozen=True)
class Torch:
    """A torch: the folder it is installed in, its version, and the CUDA it was built for.

    Without a folder it is a build to install. `backend` is then what uv calls the build, or empty
    for the pinned build. `capabilities` are the lowest and highest compute capability of the GPUs
    that it has kernels for; None if they are unknown.
    """

    folder: Optional[Path]  # noqa: UP045  (Python 3.8)
    version: str
    cuda: Version
    backend: str = ""
    capabilities: Optional[Tuple[Version, Version]] = None  # noqa: UP006, UP045  (Python 3.8)


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi describes it. `capability` is empty if the driver is too old to tell."""

    name: str
    driver: str
    capability: Version


# Builds for drivers that the pinned build does not run on, the best first; torch 2.15 has no build
# for CUDA 12. Neither was ever installed from here, or tried with an old driver. Sources, read on
# 2026-11-22:
#   2.14.1+cu126 for Linux: https://download.pytorch.org/whl/cu126/torch/, the last for CUDA 12.6:
#     https://github.com/pytorch/pytorch/issues/190385 (2026-07-17)
#   2.11.0+cu128: https://data.pyg.org/whl/nightly/, the last for CUDA 12.8:
#     https://github.com/pytorch/pytorch/issues/178665 (2026-03-27)
#   their capabilities: https://github.com/pytorch/pytorch/issues/190355 (2026-07-17) and
#     https://github.com/pytorch/pytorch/pull/175253 (2026-02-18)
BUILDS = (
    Torch(None, "2.14.1", (12, 6), "cu126", ((5, 0), (9, 0))),
    # Blackwell (RTX 5090, B200) needs kernels that builds for CUDA 12.6 don't have.
    Torch(None, "2.11.0", (12, 8), "cu128", ((7, 5), (12, 0))),
)


class NoTorch(Exception):
    """Why no torch that this project can use runs on a machine."""


def choose_torch(
    project: str, image_torch: Torch | None, gpu: Gpu | None, *, any_build: bool
) -> tuple[Torch, str]:
    """Return the torch to use, and a description of it that says why no other torch is used.

    The image's torch comes first, because it saves a download of 3 GB. Then come the pinned build
    and, if `any_build`, the BUILDS. `project` is the text of pyproject.toml. Without a `gpu`, every
    build runs. Raises NoTorch.
    """
    of_image = [] if image_torch is None else [image_torch]
    unused: list[str] = []
    for torch in [*of_image, _pinned_torch(project), *(BUILDS if any_build else ())]:
        obstacle = None if torch.folder is None else _unsuitable(torch, project)
        if obstacle is None and gpu is not None:
            obstacle = _obstacle(torch, gpu)
        if obstacle is None:
            return torch, _describe(torch, unused)
        unused.append(obstacle)
    assert gpu is not None
    machine = f"{gpu.name} with driver {gpu.driver}"
    raise NoTorch(f"no torch runs on its {machine}: {'; '.join(unused)}")


def _describe(torch: Torch, unused: list[str]) -> str:
    if torch.folder is not None:
        return f"torch {torch.version} in this image's {torch.folder}"
    build = f" ({torch.backend})" if torch.backend else ""
    why = f", because {'; '.join(unused)}" if unused else ""
    return f"torch {torch.version}{build} to be installed{why}"


def _obstacle(torch: Torch, gpu: Gpu) -> str | None:
    """Return why `torch` does not run on `gpu`; None if it may."""
    what = f"torch {torch.version} for CUDA {'.'.join(map(str, torch.cuda[:2]))}"
    needed = LEAST_DRIVER.get(torch.cuda[0]) if torch.cuda else None
    if needed is not None and numbers(gpu.driver)[:1] < (needed,):
        return f"{what} needs driver {needed} or newer"
    if torch.capabilities is None or not gpu.capability:
        return None
    low, high = torch.capabilities
    if low <= gpu.capability <= high:
        return None
    return f"{what} has no kernels for compute capability {'.'.join(map(str, gpu.capability))}"


def find_image_torch() -> Torch | None:
    """Return the torch of this Python, without importing it; None if it has no CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        text = (folder / "version.py").read_text("utf-8")
    except OSError:
        return None
    version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=]*= '([0-9.]+)'", text, re.MULTILINE)
    if version is None or cuda is None:
        return None
    return Torch(folder.parent, version[1], numbers(cuda[1]))


def _unsuitable(torch: Torch, project: str) -> str | None:
    """Return why an image's `torch` is not what pyproject.toml asks for; None if it is."""
    floor = re.search(r'"torch>=([0-9.]+)"', project)
    python = re.search(r'^requires-python = ">=([0-9.]+),<([0-9.]+)"', project, re.MULTILINE)
    if floor is None or python is None:
        return "pyproject.toml does not say which torch will do"
    if numbers(torch.version) < numbers(floor[1]):
        return f"this image's torch {torch.version} is older than {floor[1]}"
    if not numbers(python[1]) <= sys.version_info[:2] < numbers(python[2]):
        return f"this image's Python is not from {python[1]} to below {python[2]}"
    return None


def _pinned_torch(project: str) -> Torch:
    """Return the torch that `uv sync` would install."""
    version = re.search(r'"torch==([0-9.]+)', project)
    cuda = re.search(r'"cuda-toolkit==([0-9.]+)', project)
    torch = Torch(
        None, version[1] if version else "of the newest version", numbers(cuda[1] if cuda else "")
    )
    return replace(torch, capabilities=CUDA_13_CAPABILITIES) if torch.cuda[:1] == (13,) else torch


def numbers(version: str) -> Version:
    """Return the leading numbers of a version to compare, such as (2, 13, 0) for "2.13.0a0+cu130";
    empty if there are none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
