"""Held-out loss while training, with its standard error, shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pion.data.stream import RowStream
from pion.errors import BadInput
from pion.evaluate import ratio, token_nll
from pion.model.decoder import Decoder
from pion.model.loss import IGNORED


@dataclass(frozen=True)
class Evaluation:
    """A mean over target tokens. Tokens of one row depend on each other, so rows are the sample."""

    loss: float  # nats per target token
    sem: float  # standard error of `loss`; nan from a single row
    tokens: int  # target tokens
    rows: int


@torch.inference_mode()
def evaluate(
    model: Decoder,
    stream: RowStream,
    rows: range,
    micro_batch: int,
    *,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world_size: int = 1,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Loss of `model` on the given rows of `stream`, `micro_batch` at a time, computed in `dtype`.

    The softmax is over the first `vocab_size` ids, those the tokenizer produces; all by default.
    With several ranks each computes its share and all get the whole result. `on_batch` is called
    after each micro-batch. The model's train or evaluation mode is left as it was. Raises BadInput
    if the rows hold no target.
    """
    device = next(model.parameters()).device
    nll = torch.zeros(len(rows), dtype=torch.float64, device=device)
    tokens = torch.zeros_like(nll)
    training = model.training
    model.eval()
    try:
        mine = range(len(rows))[rank::world_size]
        for start in range(0, len(mine), micro_batch):
            part = list(mine[start : start + micro_batch])
            batch = stream.batch([rows[i] for i in part])
            scores, _ = token_nll(model, batch, vocab_size or model.config.vocab_size, dtype)
            nll[part] = scores.double().sum(dim=1)
            tokens[part] = (batch.targets != IGNORED).sum(dim=1).double().to(device)
            on_batch()
    finally:
        model.train(training)
    if world_size > 1:
        dist.all_reduce(nll)
        dist.all_reduce(tokens)
    if not tokens.any():
        raise BadInput(f"none of the {len(rows)} held-out rows has a token to predict")
    loss, sem = ratio(nll.cpu().numpy(), tokens.cpu().numpy())
    return Evaluation(loss=loss, sem=sem, tokens=int(tokens.sum()), rows=len(rows))
