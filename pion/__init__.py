"""The Pion model library: decoder, data order, training, generation, export.

The names below load on first use, so that `import pion` costs no torch import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pion.config.model_config import ModelConfig
    from pion.formats.load import load
    from pion.formats.seeds import import_seed
    from pion.generation.generate import generate, generate_batch
    from pion.model.decoder import Decoder

# The name on the registry, where another project is called pion.
DISTRIBUTION = "pion-lm"

__all__ = ["Decoder", "ModelConfig", "generate", "generate_batch", "import_seed", "load"]

_HOMES = {
    "Decoder": "pion.model.decoder",
    "ModelConfig": "pion.config.model_config",
    "generate": "pion.generation.generate",
    "generate_batch": "pion.generation.generate",
    "import_seed": "pion.formats.seeds",
    "load": "pion.formats.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pion' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
