"""Routing: send each token to a few of several experts, and report on the router.

Token-choice top-k routing without a capacity, as in Tachyon 2; the load-balancing loss is that of
Fedus et al. 2022, "Switch Transformers", and the z-loss that of Zoph et al. 2022, "ST-MoE".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from pion.model.pass_kind import PassKind
from pion.parts import Experts

# Names of what a layer with a router reports: see `routing_report`.
AUX, LOAD, ENTROPY = "aux", "load", "entropy"
Stats = dict[str, Tensor]


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


def routing_report(routed: Routed, settings: Experts, real: Tensor | None) -> Stats:
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
    else:
        balance = n * (share * mass).sum(dim=1)
    aux = settings.z_weight * z + settings.balance_weight * balance
    with torch.no_grad():
        everything = counted.sum().clamp(min=1)
        surprise = torch.special.entr(probabilities).sum(dim=-1) * counted
        report = {
            LOAD: picks.sum(dim=(0, 1)) / (everything * settings.top_k),
            ENTROPY: surprise.sum() / everything,
        }
    return {AUX: aux.sum(), **report}


def stack_reports(reports: Sequence[Stats], without: Collection[str]) -> Stats:
    """Return the reports of all layers that have one, stacked by name, but not those `without`."""
    return {
        name: torch.stack([report[name] for report in reports if name in report])
        # In the report's order: ranks add these up one by one.
        for name in reports[0]
        if name not in without
    }


def kept_by_router(settings: Experts, d_model: int, at: PassKind) -> int:
    """Return the bytes of a token kept for the backward pass of routing and auxiliary losses.

    In fp32: the input, if the block keeps it only in bf16; logits and probabilities; the top-k
    probabilities and their sum; the logsumexp of the logits, and whether the token counts. In
    int64: the chosen experts, and the order of the rows, in both directions if products are
    grouped. For each row of tokens: its mean probabilities and its number of tokens.
    """
    n, top_k = settings.n, settings.top_k
    given = 4 * d_model if at.width == 2 else 0
    per_row = 4 * (n + 1)
    numbers = 8 * top_k * (4 if at.grouped else 2)
    return given + 4 * (2 * n + top_k + 3) + numbers + -(-per_row // at.tokens)
