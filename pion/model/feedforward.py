"""Feed-forward layers: SwiGLU with a gate, and squared ReLU without one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu, silu

from pion.model.forward_pass import ForwardPass
from pion.model.norm import compute_dtype


class SwiGLU(nn.Module):
    """Computes down(silu(gate(x)) ⊙ up(x)) without biases (Shazeer 2020, "GLU variants")."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        x = x.to(compute_dtype(x, self.gate_proj.weight))
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        return sum(projection.weight.numel() for projection in projections)

    def kept_bytes_per_token(self, at: ForwardPass) -> int:
        """Return the bytes kept for the backward pass: gate, up, silu(gate) and their product."""
        return 4 * at.width * self.down_proj.in_features


class ReluSquared(nn.Module):
    """Computes down(relu(up(x))²) without biases (So et al. 2021, "Primer")."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model)."""
        x = x.to(compute_dtype(x, self.up_proj.weight))
        return self.down_proj(relu(self.up_proj(x)).square())

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return self.up_proj.weight.numel() + self.down_proj.weight.numel()

    def kept_bytes_per_token(self, at: ForwardPass) -> int:
        """Return the bytes kept for the backward pass: relu(up) and its square."""
        return 2 * at.width * self.down_proj.in_features
