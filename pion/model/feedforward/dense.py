"""What all feed-forward layers have in common; SwiGLU with a gate, and two matrices without one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
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
from pion.model.pass_kind import PassKind, gradient_bytes

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

    @abstractmethod
    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass."""

    def copied_bytes(self, at: PassKind) -> int:
        """Return the bytes of the weights' copies that products read."""
        return copied_by_products(self, at)

    @abstractmethod
    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept."""


def params_of_products(part: nn.Module, *, biases: bool = False) -> int:
    """Return the number of weights of a part's projections; with `biases`, of these too."""
    return sum(
        weight.numel()
        for module in part.modules()
        if isinstance(module, nn.Linear)
        for weight in (module.parameters() if biases else [module.weight])
    )


def copied_by_products(part: nn.Module, at: PassKind) -> int:
    """Return the bytes of the copies of a part's projections that bf16 products read."""
    return 0 if at.width == 4 else at.width * params_of_products(part, biases=True)


class SwiGLU(FeedForward):
    """Computes down(silu(gate(x)) ⊙ up(x)) without biases (Shazeer 2020, "GLU variants")."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_proj = Projection(d_model, d_ff)
        self.up_proj = Projection(d_model, d_ff)
        self.down_proj = Projection(d_ff, d_model)
        self._joined: Tensor | None = None

    def join_projections(self) -> None:
        """Compute gate and up as one product from now on; see Decoder."""
        self._joined, _ = join([self.gate_proj, self.up_proj])

    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), without a report."""
        x = x.to(compute_dtype(x, self.gate_proj.weight))
        if self._joined is not None:
            gate, up = project(x, self._joined).chunk(2, dim=-1)
            return self.down_proj(silu(gate) * up), {}
        gate, up = project_together(x, (self.gate_proj, self.up_proj))
        return self.down_proj(silu(gate) * up), {}

    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass: gate, up, silu(gate) and their product.

        Compiled code computes silu(gate) again.
        """
        return (3 if at.compiled else 4) * at.width * self.down_proj.in_features

    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept.

        These are the gradient of the product, which takes the place of the product, and the
        gradients of up and silu(gate). A weight's gradient is made in the dtype of the product.
        """
        return 2 * at.width * self.down_proj.in_features * tokens + gradient_bytes(
            at, self.down_proj.weight.numel()
        )


def relu_squared(x: Tensor) -> Tensor:
    """Return relu(x)² (So et al. 2021, "Primer")."""
    return relu(x).square()


# The functions between the two matrices; gelu is the exact one.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu2": relu_squared, "gelu": gelu}


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

    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass: relu(up) and its square, or up and its GELU.

        Where the square is in fp32, so is its input.
        """
        in_fp32 = self.activate is relu_squared and squares_in_fp32(at)
        return (2 * at.width + 4 * in_fp32) * self.down_proj.in_features

    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept.

        The gradient of the square takes the place of the square. Then come relu(up), twice relu(up)
        and the gradient of relu(up). All four are in fp32 where the square is. GELU adds only the
        gradient of up.
        """
        new = at.width
        if self.activate is relu_squared:
            new = 4 * 4 - at.width if squares_in_fp32(at) else 3 * at.width
        weight = gradient_bytes(at, self.down_proj.weight.numel())
        return new * self.down_proj.in_features * tokens + weight


def squares_in_fp32(at: PassKind) -> bool:
    """Return whether autocast squares bf16 in fp32, as on CUDA, and the result is kept."""
    return at.device == "cuda" and at.width == 2 and not at.compiled


def dense_layer(config: ModelConfig) -> FeedForward:
    """Return the feed-forward layer of a block without experts or primitives."""
    if config.activation == "swiglu":
        return SwiGLU(config.d_model, config.d_ff)
    return TwoMatrices(config)
