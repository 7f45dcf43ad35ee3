"""The shape of the decoder that most tests build."""

from typing import Any

from pion.config.model_config import ModelConfig


def tiny_config(**changes: Any) -> ModelConfig:
    """Return the settings of a dense decoder of 2 layers, with these changes."""
    shape: dict[str, Any] = {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 48,
        "vocab_size": 64,
        "seq_len": 24,
    }
    return ModelConfig.of(shape | changes)
