"""A mixture of experts: route each token to a few experts, and weigh their results (Tachyon 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config import ModelConfig
from pion.model.feedforward.dense import SwiGLU
from pion.model.feedforward.expert_products import mix_experts
from pion.model.norm_and_projection import compute_dtype
from pion.model.pass_kind import PassKind, gradient_bytes
from pion.model.router import Stats, kept_by_router, route, routing_report
from pion.parameter_role import Role


class Experts(nn.Module):
    """Computes Σ shared_j(x) + Σ_{e in top-k} w_e · expert_e(x), each a SwiGLU."""

    roles: ClassVar[dict[str, Role]] = {"router": "router"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.settings = config.experts
        n, d_model, d_ff = config.experts.n, config.d_model, config.d_ff
        self.router = nn.Parameter(torch.empty(n, d_model))
        self.gate_proj = nn.Parameter(torch.empty(n, d_ff, d_model))
        self.up_proj = nn.Parameter(torch.empty(n, d_ff, d_model))
        self.down_proj = nn.Parameter(torch.empty(n, d_model, d_ff))
        self.shared = nn.ModuleList(
            SwiGLU(d_model, config.experts.d_shared) for _ in range(config.experts.shared)
        )

    def forward(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), and report on the router.

        `real` (B, T) is false for padding, which is left out of the report; None: no padding.
        """
        batch, tokens, d_model = x.shape
        dtype = compute_dtype(x, self.gate_proj)
        routed = route(x, self.router, self.settings.top_k)
        x = x.to(dtype)
        mixed = self._mix(
            x.view(-1, d_model), routed.chosen.flatten(0, 1), routed.weights.flatten(0, 1)
        )
        result = mixed.view(batch, tokens, d_model)
        for expert in self.shared:
            result = result + expert(x)
        return result, routing_report(routed, self.settings, real)

    def _mix(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted results of the chosen experts; all are (tokens, …)."""
        experts, order = chosen.flatten().sort(stable=True)
        # Counting with bincount would wait for the GPU.
        every = torch.arange(self.settings.n, device=experts.device)
        ends = torch.searchsorted(experts, every, right=True).to(torch.int32)
        matrices: list[Tensor] = [self.gate_proj, self.up_proj, self.down_proj]
        return mix_experts(x, matrices, weights, order, ends)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token: only its own experts."""
        expert = sum(weight[0].numel() for weight in (self.gate_proj, self.up_proj, self.down_proj))
        shared = sum(part.macs_per_token() for part in self.shared if isinstance(part, SwiGLU))
        return self.router.numel() + self.settings.top_k * expert + shared

    def idle_params(self) -> int:
        """Return the number of parameters that a token does not use."""
        return self.stacked_params() // self.settings.n * (self.settings.n - self.settings.top_k)

    def stacked_params(self) -> int:
        """Return the number of parameters of the routed experts."""
        return sum(weight.numel() for weight in (self.gate_proj, self.up_proj, self.down_proj))

    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass.

        For each chosen expert: the products with gate and up, and its weight. Grouped products also
        keep its input, silu(gate), the product with up, and its result in the tokens' order.
        Compiled code computes silu(gate) again.
        """
        _, d_ff, d_model = self.gate_proj.shape
        chosen = 2 * d_ff + 1
        if at.grouped:
            chosen += 2 * d_model + (1 if at.compiled else 2) * d_ff
        shared = sum(p.kept_bytes_per_token(at) for p in self.shared if isinstance(p, SwiGLU))
        routed = self.settings.top_k * at.width * chosen
        return routed + shared + kept_by_router(self.settings, d_model, at)

    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept.

        Grouped products: for each chosen expert, three gradients of its result, or those of
        silu(gate) and of the product with up; and the gradient of one of the three stacks. What
        shared experts keep is free before.

        Sliced products, if all tokens choose the same experts: the gradient of each choice's input,
        for the tokens of one expert the input, the gradient of the result and six tensors of the
        width d_ff; then one expert's matrices and their gradients, and the stacks' gradients.
        """
        n, d_ff, d_model = self.gate_proj.shape
        top_k, expert = self.settings.top_k, d_ff * d_model
        if at.grouped:
            shared = [part for part in self.shared if isinstance(part, SwiGLU)]
            freed = sum(part.kept_bytes_per_token(at) for part in shared)
            own = top_k * at.width * max(3 * d_model, 2 * d_ff) - freed
            most = own * tokens + gradient_bytes(at, n * expert)
            return max([most, *(part.backward_bytes(at, tokens) for part in shared)])
        own = (top_k + 2) * d_model + 6 * d_ff
        return at.width * (own * tokens + 5 * expert) + 3 * 4 * n * expert
