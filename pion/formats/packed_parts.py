"""The form of a model's weights in which it is published: parts may be packed."""

from __future__ import annotations

from pion.config.model_config import ModelConfig
from pion.model.decoder import SHARED_PARTS
from pion.model.forward_pass import State


def packed(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return a model as it is published."""
    for kind in SHARED_PARTS.values():
        config, state = kind.pack(config, state)
    return config, state


def unpacked(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
    """Return a published model in the form that can be trained.

    Raises BadInput for a model without some of the weights that were trained.
    """
    for kind in SHARED_PARTS.values():
        config, state = kind.unpack(config, state)
    return config, state
