"""Read a seed's checkpoint as it is, and write a changed one as the seed's own trainer would."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from pion.formats.seeds.read import STUBS


def read_seed(path: Path) -> dict[str, Any]:
    """Return the content of a seed's `.pt` file, with stubs for its config objects."""
    with torch.serialization.safe_globals(list(STUBS)):
        content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def write_seed(content: Any, path: Path, **options: Any) -> None:
    """Write a `.pt` file whose config objects are of the seeds' classes, as `model.PionConfig`."""
    modules: dict[str, ModuleType] = {}
    for stub in STUBS:
        # Importing `a.b` needs `a`, too.
        names = stub.__module__.split(".")
        for end in range(1, len(names) + 1):
            package = ".".join(names[:end])
            modules.setdefault(package, ModuleType(package))
        setattr(modules[stub.__module__], stub.__name__, stub)
    with mock.patch.dict(sys.modules, modules):
        torch.save(content, path, **options)


def tensors_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors by the seed's names; changing the dict changes the content."""
    return content["model" if "model" in content else "model_state_dict"]
