"""The state of a trainer with the optimizer's tensors whole, whatever the number of ranks."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor

from pion.train.optimizer.state_pieces import Piece
from pion.train.trainer import Trainer, TrainState


def whole_state(trainer: Trainer) -> TrainState:
    """Return a copy of the state after the last step. Every rank of the trainer calls this."""
    live = trainer.state()
    several = trainer.plan.world_size > 1
    optimizer = _joined(live) if several else {n: t.clone() for n, t in live.optimizer.items()}
    return TrainState(
        model={name: tensor.clone() for name, tensor in live.model.items()},
        optimizer=optimizer,
        meta=copy.deepcopy(live.meta),
    )


def _joined(live: TrainState) -> dict[str, Tensor]:
    by_rank: list[list[Piece]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, list(live.pieces))
    whole = {name: torch.empty_like(each, device="cpu") for name, each in live.optimizer.items()}
    missing = {name: tensor.numel() for name, tensor in whole.items()}
    for piece in (piece for pieces in by_rank for piece in pieces):
        piece.within(whole[piece.name]).copy_(piece.values)
        missing[piece.name] -= piece.values.numel()
    assert not any(missing.values()), missing  # each element has one owner
    return whole
