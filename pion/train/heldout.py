"""Measure the held-out loss and its standard error during training, split over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from pion.data.stream import RowStream
from pion.errors import BadInput
from pion.evaluate import Scorer, ratio, token_nll
from pion.model.loss import IGNORED


@dataclass(frozen=True)
class Evaluation:
    """A mean over target tokens. Tokens of one row are not independent, so rows are the sample."""

    loss: float  # nats per target token
    sem: float  # standard error of `loss`; NaN for a single row
    tokens: int  # target tokens
    rows: int


@torch.inference_mode()
def evaluate(
    scorer: Scorer, stream: RowStream, rows: range, *, rank: int = 0, world_size: int = 1
) -> Evaluation:
    """Return the loss of the scorer's model on the given rows of `stream`.

    With several ranks, each rank computes its share, and all ranks get the whole result. The
    model's train or evaluation mode is restored. Raises BadInput if the rows have no target.
    """
    model = scorer.model
    device = next(model.parameters()).device
    # On the host: consumer GPUs and the A40 compute fp64 at 1/64 of their fp32 speed.
    nll = torch.zeros(len(rows), dtype=torch.float64)
    tokens = torch.zeros_like(nll)
    training = model.training
    model.eval()
    try:
        mine = range(len(rows))[rank::world_size]
        for start in range(0, len(mine), scorer.micro_batch):
            part = list(mine[start : start + scorer.micro_batch])
            batch = stream.batch([rows[i] for i in part])
            scores, _ = token_nll(model, batch, scorer.vocab_size, scorer.dtype)
            nll[part] = scores.cpu().double().sum(dim=1)
            tokens[part] = (batch.targets != IGNORED).sum(dim=1).double()
            scorer.on_batch()
    finally:
        model.train(training)
    if world_size > 1:
        sums = torch.stack((nll, tokens)).to(device)
        dist.all_reduce(sums)
        nll, tokens = sums.cpu()
    if not tokens.any():
        raise BadInput(f"none of the {len(rows)} held-out rows has a token to predict")
    loss, sem = ratio(nll.numpy(), tokens.numpy())
    return Evaluation(loss=loss, sem=sem, tokens=int(tokens.sum()), rows=len(rows))
