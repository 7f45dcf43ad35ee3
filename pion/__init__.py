"""The Pion model library: decoder, data order, training, generation, export.

The names below load on first use, so that `import pion` costs no torch import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pion.config import ModelConfig
    from pion.generation import generate
    from pion.loading import load
    from pion.model.decoder import Decoder
    from pion.seeds import import_seed

__all__ = ["Decoder", "ModelConfig", "generate", "import_seed", "load"]

_HOMES = {
    "Decoder": "pion.model.decoder",
    "ModelConfig": "pion.config",
    "generate": "pion.generation",
    "import_seed": "pion.seeds",
    "load": "pion.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pion' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
