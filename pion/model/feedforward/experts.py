"""A mixture of experts: route each token to a few experts, and weigh their results (Tachyon 2).

Token-choice top-k routing without a capacity; the load-balancing loss is that of Fedus et al. 2022,
"Switch Transformers", and the z-loss that of Zoph et al. 2022, "ST-MoE".
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts as Settings
from pion.config.parts import Role
from pion.model.feedforward.dense import (
    NOTHING_ELSE,
    FeedForward,
    FeedForwardInputs,
    Stats,
    SwiGLU,
    params_of_products,
)
from pion.model.feedforward.expert_products import mix_experts
from pion.model.norm_and_projection import compute_dtype
from pion.model.parameters import draw_matrix

# Names of what a layer with a router reports: see `routing_report`.
AUX, LOAD, ENTROPY = "aux", "load", "entropy"


class Routed(NamedTuple):
    """Where the tokens of (B, T, d_model) go.

    `chosen` (B, T, top_k) has the numbers of each token's experts, and `weights` what their results
    count, which adds up to 1. `probabilities` (B, T, E) are the router's, and `log_total` (B, T) is
    the logsumexp of its logits. All but `chosen` are in fp32.
    """

    chosen: Tensor
    weights: Tensor
    probabilities: Tensor
    log_total: Tensor


def route(x: Tensor, router: Tensor, top_k: int) -> Routed:
    """Route tokens (B, T, d_model) by the router (E, d_model). Rounded logits would tie: fp32."""
    with torch.autocast(x.device.type, enabled=False):
        logits = linear(x.float(), router.float())
    # torch's softmax over a few elements is slow on a CPU, and the report needs the logsumexp.
    log_total = logits.logsumexp(dim=-1)
    probabilities = (logits - log_total[..., None]).exp()
    weights, chosen = probabilities.topk(top_k, dim=-1)
    return Routed(chosen, weights / weights.sum(dim=-1, keepdim=True), probabilities, log_total)


def routing_report(routed: Routed, settings: Settings, real: Tensor | None) -> Stats:
    """Report on a router.

    `real` (B, T) is false for padding, which is left out; None: no padding. The report has "aux",
    the auxiliary losses summed over rows; "load" (E,), the share of tokens that go to each expert;
    and "entropy", the mean entropy of the router in nats.
    """
    chosen, _, probabilities, log_total = routed
    batch, _, n = probabilities.shape
    counted = torch.ones_like(log_total) if real is None else real.to(log_total.dtype)
    per_row = counted.sum(dim=1).clamp(min=1)
    picks = torch.zeros_like(probabilities).scatter(
        2, chosen, counted[..., None].expand(-1, -1, settings.top_k)
    )
    z = (log_total.square() * counted).sum(dim=1) / per_row
    share = picks.sum(dim=1) / (per_row[:, None] * settings.top_k)  # (B, E)
    mass = (probabilities * counted[..., None]).sum(dim=1) / per_row[:, None]
    if settings.balance == "batch":
        share, mass = share.mean(dim=0, keepdim=True), mass.mean(dim=0, keepdim=True)
    balance = (n * (share * mass).sum(dim=1)).expand(batch)
    aux = settings.z_weight * z + settings.balance_weight * balance
    with torch.no_grad():
        everything = counted.sum().clamp(min=1)
        surprise = torch.special.entr(probabilities).sum(dim=-1) * counted
        report = {
            LOAD: picks.sum(dim=(0, 1)) / (everything * settings.top_k),
            ENTROPY: surprise.sum() / everything,
        }
    return {AUX: aux.sum(), **report}


# ---------------------------------------------------------------- the layer


class Experts(FeedForward):
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

    def draw_weights(self, init: str, std: float) -> None:
        """Draw the router, and the matrices of all experts as those of other layers."""
        nn.init.normal_(self.router, std=std)
        for name in ("gate_proj", "up_proj", "down_proj"):
            draw_matrix(getattr(self, name), name, init, std)

    def forward(self, x: Tensor, inputs: FeedForwardInputs = NOTHING_ELSE) -> tuple[Tensor, Stats]:
        """Map (B, T, d_model) to (B, T, d_model), and report on the router.

        Padding is left out of the report.
        """
        batch, tokens, d_model = x.shape
        dtype = compute_dtype(x, self.gate_proj)
        routed = route(x, self.router, self.settings.top_k)
        x = x.to(dtype)
        experts, order = routed.chosen.flatten().sort(stable=True)
        # Counting with bincount would wait for the GPU.
        every = torch.arange(self.settings.n, device=experts.device)
        ends = torch.searchsorted(experts, every, right=True).to(torch.int32)
        result = mix_experts(
            x.view(-1, d_model),
            [self.gate_proj, self.up_proj, self.down_proj],
            routed.weights.flatten(0, 1),
            order,
            ends,
        ).view(batch, tokens, d_model)
        for expert in self.shared:
            result = result + expert(x)[0]
        return result, routing_report(routed, self.settings, inputs.real)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token: only its own experts."""
        expert = self.stacked_params() // self.settings.n
        return self.router.numel() + self.settings.top_k * expert + params_of_products(self)

    def idle_params(self) -> int:
        """Return the number of parameters that a token does not use."""
        return self.stacked_params() // self.settings.n * (self.settings.n - self.settings.top_k)

    def stacked_params(self) -> int:
        """Return the number of parameters of the routed experts."""
        return sum(weight.numel() for weight in (self.gate_proj, self.up_proj, self.down_proj))
