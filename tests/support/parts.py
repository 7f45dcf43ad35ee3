"""Ranks that have a model in parts, without training it: the state that each of them saves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pion.train.optimizer.state_pieces import Piece
from pion.train.trainer import TrainState

Tensors = dict[str, Tensor]


def whole_model(step: int) -> Tensors:
    """Return weights of several shapes and types, other ones after each step."""
    draw = torch.Generator().manual_seed(step)
    return {
        "embed": torch.randn(64, 32, generator=draw),
        "experts": torch.randn(3, 8, 16, generator=draw),
        "gain": torch.randn(7, generator=draw, dtype=torch.bfloat16),
        "few rows": torch.randn(1, 5, generator=draw),
        "scalar": torch.randn((), generator=draw),
        "ids": torch.arange(6) + step,
        "empty": torch.empty(0, 4),
    }


def whole_moments(step: int) -> Tensors:
    """Return the moments of these weights."""
    weights = whole_model(step)
    return {f"exp_avg.{name}": each * 2 for name, each in weights.items() if name != "ids"}


def state_of(rank: int, count: int, step: int) -> TrainState:
    """Return the state of a rank after a step, as `Trainer.state` does of a sharded model."""
    model, moments = whole_model(step), whole_moments(step)
    return TrainState(
        {name: tensor.to("meta") for name, tensor in model.items()},
        {name: tensor.to("meta") for name, tensor in moments.items()},
        {"step": step},
        pieces=pieces_of(moments, rank, count),
        model_pieces=pieces_of(model, rank, count),
    )


def pieces_of(tensors: Tensors, rank: int, count: int) -> Sequence[Piece]:
    """Return a rank's rows of each tensor; of stacks, its rows of each matrix."""
    pieces = []
    for name, tensor in tensors.items():
        stack = tensor.unsqueeze(0) if tensor.dim() < 3 else tensor
        rows = stack.shape[1] if stack.dim() > 1 else 1
        below = stack.numel() // max(len(stack) * rows, 1)
        first, stop = rows * rank // count, rows * (rank + 1) // count
        for matrix in range(len(stack)):
            start = (matrix * rows + first) * below
            values = tensor.reshape(-1)[start : start + (stop - first) * below]
            pieces.append(Piece(name, start, values))
    return pieces
