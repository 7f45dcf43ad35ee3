"""The Pion model library: decoder, data order, training, generation, export.

The names below load on first use, so that `import pion` costs no torch import.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pion.config import ModelConfig
    from pion.generate import generate
    from pion.generate_batch import generate_batch
    from pion.load import load
    from pion.model.decoder import Decoder
    from pion.seeds import import_seed

__all__ = ["Decoder", "ModelConfig", "generate", "generate_batch", "import_seed", "load"]

_HOMES = {
    "Decoder": "pion.model.decoder",
    "ModelConfig": "pion.config",
    "generate": "pion.generate",
    "generate_batch": "pion.generate_batch",
    "import_seed": "pion.seeds",
    "load": "pion.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pion' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """Keeps `pion.generate` and `pion.load` bound to the functions.

    Importing the submodule pion.generate or pion.load would otherwise replace the function of the
    same name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
