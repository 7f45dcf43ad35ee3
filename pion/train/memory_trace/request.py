"""What a trace is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig


@dataclass(frozen=True)
class Traced:
    """What is trained, and how it is computed, as far as memory depends on it."""

    config: ModelConfig
    seq_len: int
    bf16: bool
    bf16_residual: bool
    device: str  # "cpu" or "cuda"
    documents: bool
    compiled: bool
    lora: Lora | None
    only_apart: bool
    capability: tuple[int, int]
    sequences: int = 0  # in a row of preferences; 0: no preferences
    sharded: bool = False  # whether ranks keep parts of the weights, and gather them


@dataclass(frozen=True)
class Peaks:
    """The bytes of one micro-batch, besides weights, their gradients and the optimizer's state.

    Attributes:
        activations: kept for the backward pass, before the loss.
        forward: the most in the forward pass, which includes the loss.
        backward: the most in the backward pass.
    """

    activations: int
    forward: int
    backward: int
