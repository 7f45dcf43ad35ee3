"""Gates that say which tokens need no feed-forward layer (the exit gates of PILON).

A gate sees the hidden states after attention. It learns how close a prediction from there comes to
the model's own: its target is exp(−KL(p ‖ p_here)), where p_here is what the last norm and the head
make of these states. Gates learn from a model, and change nothing in it: neither their targets nor
their inputs have gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from pion.config.parts import Role
from pion.model.chunks_of_logits import CPU_CHUNK_BYTES, CUDA_CHUNK_BYTES, rows_per_chunk
from pion.model.feedforward.dense import Stats

# Names of what a block with a gate returns for `gate_loss`, and of what the model reports of it.
GATE, SEEN_BY_GATE, GATE_LOSS = "gate", "seen_by_gate", "gate_loss"
# The confidence sigmoid(−2) = 0.12, with which all gates start.
FIRST_BIAS = -2.0
# Targets of a part of the tokens need this many tensors (tokens, vocab) in fp32.
TENSORS = 6


class Gate(nn.Module):
    """Computes a · x + b. Its sigmoid is the confidence that a token needs no more.

    `skip_above` is the confidence above which a token skips the layer; None: no token does.
    """

    roles: ClassVar[dict[str, Role]] = {"weight": "gate", "bias": "gate"}

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.skip_above: float | None = None
        # At first, all tokens have the same low confidence.
        self.weight = nn.Parameter(torch.zeros(1, d_model))
        self.bias = nn.Parameter(torch.full((1,), FIRST_BIAS))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, d_model) to the logits of confidences (B, T), in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.detach().float(), self.weight.float(), self.bias.float())[..., 0]


def apply_to_others(layer: Callable[[Tensor], Tensor], x: Tensor, skipped: Tensor) -> Tensor:
    """Return layer(x) (B, T, d_model), computed without the `skipped` (B, T) tokens: 0 for them.

    `layer` maps (1, tokens, d_model) to the same shape, each token for itself.
    """
    result = torch.zeros_like(x)
    computed = ~skipped
    if computed.any():
        result[computed] = layer(x[computed][None])[0].to(result.dtype)
    return result


def gate_loss(
    reports: Sequence[Stats],
    states: Tensor,
    predict: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
    vocab: int,
    real: Tensor | None,
) -> tuple[Tensor, Stats]:
    """Return the loss of all gates, summed over rows, and its report.

    `reports` has each layer's GATE, logits (B, T), and SEEN_BY_GATE (B, T, d_model). `predict`
    applies the head, of `vocab` rows; `states` are its input, and `norm` is the norm before it. A
    row's loss is the mean binary cross-entropy over its gates and its `real` tokens. The report has
    "gate_loss" (L,), the mean of each layer.
    """
    logits = torch.stack([report[GATE] for report in reports])
    with torch.no_grad():
        targets = _closeness(
            [norm(report[SEEN_BY_GATE]) for report in reports], states, predict, vocab
        )
    losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")  # (L, B, T)
    counted = torch.ones_like(losses[0]) if real is None else real.to(losses.dtype)
    per_row = (losses * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)
    return per_row.mean(dim=0).sum(), {GATE_LOSS: per_row.mean(dim=1).detach()}


def _closeness(
    seen: Sequence[Tensor], states: Tensor, predict: Callable[[Tensor], Tensor], vocab: int
) -> Tensor:
    """Return exp(−KL(p ‖ p_here)) of each token in each layer (L, B, T).

    This takes at most as much memory as the loss took for its logits.
    """
    layers, last = [each.flatten(0, 1) for each in seen], states.flatten(0, 1)
    most = CPU_CHUNK_BYTES if last.device.type == "cpu" else CUDA_CHUNK_BYTES
    limit = min(most, 4 * vocab * len(last))
    closeness = []
    size = rows_per_chunk(len(last), TENSORS * vocab, limit)
    for start in range(0, len(last), size):
        here = slice(start, start + size)
        final = predict(last[here]).float().log_softmax(dim=-1)
        weights = final.exp()
        apart = [
            (weights * (final - predict(layer[here]).float().log_softmax(dim=-1))).sum(dim=-1)
            for layer in layers
        ]
        closeness.append((-torch.stack(apart)).exp())
    return torch.cat(closeness, dim=1).view(len(seen), *states.shape[:-1])
