"""Measure the held-out loss and its standard error during training, split over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from pion.data.stream import RowStream
from pion.errors import BadInput
from pion.evaluation.held_out import Scorer, ratio, token_nll
from pion.model.loss import IGNORED


@dataclass(frozen=True)
class Evaluation:
    """A mean over target tokens. Tokens and rows of one document are not independent, so documents
    are the sample, or the rows of a single document."""

    loss: float  # nats per target token
    sem: float  # standard error of `loss`; NaN for a single row
    tokens: int  # target tokens
    rows: int


@torch.inference_mode()
def evaluate(
    scorer: Scorer,
    stream: RowStream,
    rows: range,
    end_of_text: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Return the loss of the scorer's model on the given rows of `stream`.

    `end_of_text` is the id that ends a document. With several ranks, each rank computes its share,
    and all ranks get the whole result. The model's train or evaluation mode is restored. Raises
    BadInput if the rows have no target.
    """
    model = scorer.model
    device = next(model.parameters()).device
    # On the host: consumer GPUs and the A40 compute fp64 at 1/64 of their fp32 speed.
    by_row = torch.zeros(2, len(rows), dtype=torch.float64)  # nats, and target tokens
    documents = torch.from_numpy(stream.document_numbers(rows, end_of_text))
    by_document = by_row.new_zeros(2, int(documents.max()) + 1 if len(rows) else 0)
    training = model.training
    model.eval()
    try:
        mine = range(len(rows))[rank::world_size]
        for start in range(0, len(mine), scorer.micro_batch):
            part = list(mine[start : start + scorer.micro_batch])
            batch = stream.batch([rows[i] for i in part])
            scores, _ = token_nll(model, batch, scorer.vocab_size, scorer.dtype)
            found = torch.stack((scores.cpu(), batch.targets != IGNORED)).double()
            by_row[:, part] = found.sum(dim=2)
            by_document.index_add_(1, documents[part].flatten(), found.flatten(1))
            scorer.on_batch()
    finally:
        model.train(training)
    if world_size > 1:
        sums = torch.cat((by_row, by_document), dim=1).to(device)
        dist.all_reduce(sums)
        by_row, by_document = sums.cpu().split((len(rows), by_document.shape[1]), dim=1)
    if not by_row[1].any():
        raise BadInput(f"none of the {len(rows)} held-out rows has a token to predict")
    loss, sem = ratio(*by_row.numpy())
    learned = by_document[:, by_document[1] > 0]
    if learned.shape[1] > 1:
        _, sem = ratio(*learned.numpy())
    return Evaluation(loss=loss, sem=sem, tokens=int(by_row[1].sum()), rows=len(rows))
