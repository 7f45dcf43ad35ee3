"""What a reference model gives for the answers of preferences: sums of log-probabilities.

They are computed once, before a stage's first step, by the code that trains: so the model and its
reference are equal at the first step, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pion.data.stream import Batch, to_device
from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.train.hardware import torch_dtype
from pion.train.preference_losses import answer_sums
from pion.train.settings import ComputePlan

# How far two computations of a sum of n log-probabilities may be apart, in nats per √n, and at
# least. An answer of one unlikely token may be further apart than √n says. The numbers may be of
# another card.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
AT_LEAST = {"float32": 1e-3, "bfloat16": 0.3}
# A log-probability is at most 0, and so far above it by rounding.
MOST = 1e-3


def column_of(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the numbers of rows as a column of a shard, fp64 ``(rows, S)``, a line for each row.

    ``S`` is the most numbers of a row. NaN follows the numbers of a row that has fewer.
    """
    column = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for line, row in zip(column, rows):
        line[: len(row)] = row
    return column


def numbers_in(line: np.ndarray) -> list[float]:
    """Return the numbers of a row, by its line in a column."""
    numbers: list[float] = line[~np.isnan(line)].tolist()
    return numbers


def check_column(column: np.ndarray, where: str) -> None:
    """Raise BadInput, naming `where`, for what is no column of sums of log-probabilities."""
    if np.isnan(column[:, :1]).any() or (len(column) and not column.shape[1]):
        raise BadInput(f"{where}: has a row without a number")
    check_sums(column[~np.isnan(column)], where)


def check_sums(sums: np.ndarray, where: str) -> None:
    """Raise BadInput, naming `where`, for what is no sum of log-probabilities."""
    wrong = ~np.isfinite(sums) | (sums > MOST)
    if wrong.any():
        index = int(wrong.argmax())
        raise BadInput(
            f"{where}: number {index:,} is {sums[index]}; a sum of log-probabilities is finite, "
            "and at most 0"
        )


def sums_as_trained(model: Decoder, batch: Batch, plan: ComputePlan) -> Tensor:
    """Return the sum of log-probabilities of each sequence, fp64 (B, S) in nats.

    The batch is on the model's device. The forward pass is that of a training step by `plan`, so
    that a model and its reference differ by nothing: without gradients, compiled blocks round
    other numbers to bf16. It keeps what a backward pass would need until it returns.
    """
    options = StepOptions({}, plan.recompute, plan.compile, torch_dtype(plan.residual))
    with (
        torch.enable_grad(),
        torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=plan.dtype == "bfloat16"),
    ):
        sums, _ = answer_sums(model, batch, options)
    return sums.detach()


def sums_of(model: Decoder, batch: Batch, plan: ComputePlan) -> list[list[float]]:
    """Return the sum of log-probabilities of each sequence in each row of a batch, in nats: see
    `sums_as_trained`."""
    assert batch.sequences is not None
    sums = sums_as_trained(model, to_device(batch, model.embed.weight.device), plan).cpu()
    return [row[side != 0].tolist() for row, side in zip(sums, batch.sequences.side, strict=True)]


@contextmanager
def unchanged(model: Decoder) -> Iterator[None]:
    """Put the model into training mode for the block, and its buffers back afterwards."""
    before: Mapping[str, Tensor] = {name: b.clone() for name, b in model.named_buffers()}
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def check_reference(
    model: Decoder, batch: Batch, plan: ComputePlan, where: str, *, computed_in: str | None = None
) -> float:
    """Raise BadInput, naming `where`, if the numbers of a batch are not those of this model.

    Return how far the worst one is off, as a share of what it may be. `computed_in`
    is the dtype in which the numbers were computed; None: that of the plan.
    """
    dtype = max(plan.dtype, computed_in or plan.dtype, key=lambda name: TOLERANCE[name])
    assert batch.sequences is not None
    with unchanged(model):
        row_sums = sums_of(model, batch, plan)
    worst = 0.0
    for row, sums in enumerate(row_sums):
        stored = batch.sequences.reference[row].tolist()
        tokens = batch.sequences.tokens[row].tolist()
        for number, ours in enumerate(sums):
            allowed = max(AT_LEAST[dtype], TOLERANCE[dtype] * math.sqrt(tokens[number]))
            apart = abs(ours - stored[number])
            if not apart <= allowed:  # not `>`: a NaN must not pass
                raise BadInput(
                    f"{where}: these reference numbers are not of these weights: for sequence "
                    f"{number} in row {row} of the first batch, they say {stored[number]:.6f}, and "
                    f"the model that the stage starts from gives {ours:.6f} (allowed: "
                    f"{allowed:.2g} apart)"
                )
            worst = max(worst, apart / allowed)
    return worst
