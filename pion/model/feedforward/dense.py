"""What all feed-forward layers have in common; SwiGLU with a gate, and two matrices without one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from pion.config.model_config import ModelConfig
from pion.model.norm_and_projection import (
    Projection,
    compute_dtype,
    join,
    project,
    project_together,
)

# What a layer reports, without gradient unless it is a loss, by name.
Stats = dict[str, Tensor]


class FeedForwardInputs(NamedTuple):
    """What a feed-forward layer gets besides the hidden states.

    `real` (B, T) is false for padding; None: there is no padding. `shared` is what the layer reads
    of weights that it shares with other layers.
    """

    real: Tensor | None = None
    shared: Any = None


NOTHING_ELSE = FeedForwardInputs()


class FeedForward(nn.Module):
    """What all feed-forward layers have. A block knows no more of its layer."""

    @abstractmethod
    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), and report."""

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return params_of_products(self)

    def idle_params(self) -> int:
        """Return the number of parameters that a token does not use."""
        return 0


def params_of_products(part: nn.Module) -> int:
    """Return the number of weights of a part's projections, without biases."""
    linear = (module for module in part.modules() if isinstance(module, nn.Linear))
    return sum(module.weight.numel() for module in linear)


# The functions of gates, and those between two matrices: relu(x)² (So et al. 2021, "Primer"), the
# exact GELU, and GELU by tanh.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": silu,
    "geglu": partial(gelu, approximate="tanh"),
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu2": lambda x: relu(x).square(),
    "gelu": gelu,
}


class SwiGLU(FeedForward):
    """Computes down(act(gate(x)) ⊙ up(x)) (Shazeer 2020, "GLU variants"); act is SiLU, or GELU by
    tanh in GEGLU. Only imports have biases."""

    def __init__(
        self, d_model: int, d_ff: int, activation: str = "swiglu", *, bias: bool = False
    ) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self.gate_proj = Projection(d_model, d_ff, bias=bias)
        self.up_proj = Projection(d_model, d_ff, bias=bias)
        self.down_proj = Projection(d_ff, d_model, bias=bias)
        self._joined: tuple[Tensor, Tensor | None] | None = None

    def join_projections(self) -> None:
        """Compute gate and up as one product from now on; see Decoder."""
        self._joined = join([self.gate_proj, self.up_proj])

    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), without a report."""
        x = x.to(compute_dtype(x, self.gate_proj.weight))
        gate, up = (
            project_together(x, (self.gate_proj, self.up_proj))
            if self._joined is None
            else project(x, *self._joined).chunk(2, dim=-1)
        )
        return self.down_proj(self.activate(gate) * up), {}


class TwoMatrices(FeedForward):
    """Computes down(act(up(x))); act is squared ReLU or GELU. Only imports have biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.up_proj = Projection(config.d_model, config.d_ff)
        self.down_proj = Projection(config.d_ff, config.d_model)
        biases = config.feedforward_bias
        self.up_bias = nn.Parameter(torch.zeros(config.d_ff)) if biases else None
        self.down_bias = nn.Parameter(torch.zeros(config.d_model)) if biases else None

    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), without a report."""
        hidden = self.up_proj(x.to(compute_dtype(x, self.up_proj.weight)))
        if self.up_bias is not None:
            hidden = hidden + self.up_bias.to(hidden.dtype)
        result = self.down_proj(self.activate(hidden))
        if self.down_bias is not None:
            result = result + self.down_bias.to(result.dtype)
        return result, {}


def dense_layer(config: ModelConfig) -> FeedForward:
    """Return the feed-forward layer of a block without experts or primitives."""
    if config.gated:
        bias = config.feedforward_bias
        return SwiGLU(config.d_model, config.d_ff, config.activation, bias=bias)
    return TwoMatrices(config)
