"""Feed-forward layers: SwiGLU with a gate, and two matrices without one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from pion.config import ModelConfig
from pion.model.norm_and_projection import Projection, compute_dtype, join, project
from pion.model.pass_kind import PassKind, gradient_bytes


class SwiGLU(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        x = x.to(compute_dtype(x, self.gate_proj.weight))
        if self._joined is not None:
            gate, up = project(x, self._joined).chunk(2, dim=-1)
            return self.down_proj(silu(gate) * up)
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        return sum(projection.weight.numel() for projection in projections)

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


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function between the two matrices: relu2, or the exact gelu."""
    return relu_squared if name == "relu2" else gelu


class TwoMatrices(nn.Module):
    """Computes down(act(up(x))); act is squared ReLU or GELU. Only imports have biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activate = activation(config.activation)
        self.squares = config.activation == "relu2"
        self.up_proj = Projection(config.d_model, config.d_ff)
        self.down_proj = Projection(config.d_ff, config.d_model)
        self.up_bias: nn.Parameter | None = None
        self.down_bias: nn.Parameter | None = None
        if config.feedforward_bias:
            self.up_bias = nn.Parameter(torch.zeros(config.d_ff))
            self.down_bias = nn.Parameter(torch.zeros(config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        hidden = self.up_proj(x.to(compute_dtype(x, self.up_proj.weight)))
        if self.up_bias is not None:
            hidden = hidden + self.up_bias.to(hidden.dtype)
        result = self.down_proj(self.activate(hidden))
        return result if self.down_bias is None else result + self.down_bias.to(result.dtype)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return self.up_proj.weight.numel() + self.down_proj.weight.numel()

    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass: relu(up) and its square, or up and its GELU.

        Where the square is in fp32, so is its input.
        """
        in_fp32 = self.squares and squares_in_fp32(at)
        return (2 * at.width + 4 * in_fp32) * self.down_proj.in_features

    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept.

        The gradient of the square takes the place of the square. Then come relu(up), twice relu(up)
        and the gradient of relu(up). All four are in fp32 where the square is. GELU adds only the
        gradient of up.
        """
        new = at.width
        if self.squares:
            new = 4 * 4 - at.width if squares_in_fp32(at) else 3 * at.width
        weight = gradient_bytes(at, self.down_proj.weight.numel())
        return new * self.down_proj.in_features * tokens + weight


def squares_in_fp32(at: PassKind) -> bool:
    """Return whether autocast squares bf16 in fp32, as on CUDA, and the result is kept."""
    return at.device == "cuda" and at.width == 2 and not at.compiled
