"""How far each layer's attention sees: everything before, or a window of blocks."""

from __future__ import annotations

from typing import Literal

from pion.config.model_config import ModelConfig
from pion.config.parts import Windows

Reach = Literal["full", "long", "short"]


def reach_of(config: ModelConfig, layer: int) -> Reach:
    """Return how far the attention of a layer sees."""
    windows = config.windows
    if windows is None or layer in (windows.full_layers or ()):
        return "full"
    if windows.full_layers is not None:
        return "long"
    far = layer % windows.long_every == 0 or layer == config.n_layers - 1
    return "long" if far else "short"


def reaches(config: ModelConfig) -> set[Reach]:
    """Return the reaches of all layers."""
    return {reach_of(config, layer) for layer in range(config.n_layers)}


def window_blocks(windows: Windows, tokens: int | None = None) -> dict[Reach, int]:
    """Return the number of blocks in each window, if the long one has so many tokens."""
    long = (tokens or windows.tokens) // windows.block
    return {"long": long, "short": long // 2}


def window_tokens(config: ModelConfig, reach: Reach) -> int | None:
    """Return the most tokens that a token sees, itself included; None: all before it."""
    if config.windows is None or reach == "full":
        return next((seen for _, part in config.parts() if (seen := part.tokens_seen())), None)
    return max(1, window_blocks(config.windows)[reach]) * config.windows.block
