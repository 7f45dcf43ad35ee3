"""What a result depends on: the card, its driver, torch, and the code that ran."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch

from pion import DISTRIBUTION
from pion.errors import BadInput
from pion.secret_names import without_secret_names
from pion.train.hardware import device_name, total_memory

# The oldest torch that Pion runs on, as in pyproject.toml.
OLDEST_TORCH = (2, 9)
PACKAGE = Path(__file__).parents[1]
# The results that ship with Pion: in an installed package, and in a checkout.
_INSTALLED, _CHECKOUT = PACKAGE / "bench" / "cards", PACKAGE.parent / "benchmarks/results/bench"


@dataclass(frozen=True)
class Card:
    """The device and the software of a bench. Nothing here names a machine, a person or a path.

    Attributes:
        card: the device as its driver calls it.
        capability: the compute capability of a GPU, such as 8.6.
        memory: bytes of the device.
        code: a hash of the Python files of `pion`, to tell whether two results are of one code.
    """

    card: str
    capability: str | None
    memory: int
    driver: str | None
    torch: str
    cuda: str | None
    pion: str
    code: str

    def difference(self, other: Card) -> str | None:
        """Return why rows of `other` don't hold for this card; None if they do."""
        for name in ("card", "torch", "cuda", "pion", "code"):
            if (ours := getattr(self, name)) != (theirs := getattr(other, name)):
                return f"another {name} ({theirs}, and now {ours})"
        return None


def describe(device: torch.device) -> Card:
    """Return what a bench on `device` depends on."""
    cuda = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if cuda else None
    return Card(
        card=device_name(device),
        capability=None if capability is None else "{}.{}".format(*capability),
        memory=total_memory(device),
        driver=_driver() if cuda else None,
        torch=str(torch.__version__),
        cuda=torch.version.cuda if cuda else None,
        pion=_version(),
        code=_code(),
    )


def file_name(card: str) -> str:
    """Return the name of a card's result: `nvidia-a40.json`."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") + ".json"


def shipped_results() -> list[Path]:
    """Return the files with the results that ship with Pion."""
    return sorted((_INSTALLED if _INSTALLED.is_dir() else _CHECKOUT).glob("*.json"))


def require_torch() -> None:
    """Raise BadInput if torch is older than Pion needs."""
    installed = tuple(int(n) for n in re.findall(r"\d+", str(torch.__version__))[:2])
    if installed < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise BadInput(
            f"torch {torch.__version__} is too old: Pion needs {needed} or newer. Nothing was "
            f'measured. Run: pip install "torch>={needed}"'
        )


def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None if nobody says."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            encoding="utf-8",
            timeout=20,
            check=True,
            env=without_secret_names(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"[\d.]+", done.stdout)
    return match[0] if match else None


def _version() -> str:
    """Return Pion's version, also from a checkout that is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        project = PACKAGE.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def _code() -> str:
    """Return a short hash of the Python files of the package `pion`."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
