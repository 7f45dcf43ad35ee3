"""The gated feed-forward layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

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

    def kept_bytes_per_token(self, width: int) -> int:
        """Return the bytes kept for the backward pass: gate, up, silu(gate) and their product."""
        return 4 * width * self.down_proj.in_features
