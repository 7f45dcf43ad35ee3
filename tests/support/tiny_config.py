"""The shape of the decoder that most tests build, and its first weights."""

from typing import Any

import torch

from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder


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


def drawn(config: ModelConfig, seed: int = 0) -> Decoder:
    """Return a decoder whose weights this seed draws, and biases that begin as 0, too."""
    torch.manual_seed(seed)
    model = Decoder(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias") and not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return model
