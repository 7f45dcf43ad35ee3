"""How far a model is from its reference: z0 of kto (Ethayarajh et al. 2024).

z0 estimates the KL divergence of the model from its reference by mismatched sequences: prompts with
the answers of others (`pion.data.preference.mismatched`). The loss of each example needs it, so it
is known before the first gradient of a step, and it has none itself. It is a mean over the
sequences of the whole step: that of a micro-batch would let the machine decide about the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pion.data.sequences import Sequences
from pion.data.stream import Batch, to_device
from pion.model.decoder import Decoder
from pion.train.reference import sums_as_trained
from pion.train.settings import ComputePlan

NO_MISMATCHED = (
    "the loss kto needs each row with the answers of others, and the rows have none: give the "
    "trainer a stream with them (RowStream.with_mismatched)"
)


def distance(
    model: Decoder, batch: Batch, plan: ComputePlan, parts: Mapping[str, Any] | None = None
) -> Tensor:
    """Return what z0 is made of, for a batch of mismatched rows: fp64 (2,), on the model's device.

    The first number is the sum over sequences of log π − log ref, in nats, and the second is how
    many sequences there are. Both add up over batches and ranks. The forward pass is that of the
    reference, so a model that is its own reference has no distance. `parts` is as in StepOptions.
    """
    there = to_device(batch, model.embed.weight.device)
    assert there.sequences is not None
    return apart(sums_as_trained(model, there, plan, parts), there.sequences)


def apart(sums: Tensor, sequences: Sequences) -> Tensor:
    """Return the sum of log π − log ref over the sequences of a batch, and their number, as
    `distance` does. `sums` are the model's, fp64 (B, S)."""
    real = sequences.side != 0
    each = torch.where(real, sums - sequences.reference, 0.0)
    return torch.stack([each.sum(), real.sum().double()])


def together(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of what `distance` has returned for one or more batches."""
    return torch.stack([*parts]).sum(dim=0)


def z0_of(total: Tensor) -> Tensor:
    """Return z0 in nats, an fp64 scalar: the mean distance, or 0 if that is below 0.

    `total` is the sum of what `distance` returns. Without any sequence, z0 is 0, as in apo-zero.
    """
    apart, count = total.unbind()
    return (apart / count.clamp(min=1)).clamp(min=0)


def reported(z0: Tensor) -> dict[str, Tensor]:
    """Return what a step reports of z0, as a scalar in fp32."""
    return {"z0": z0.float()}
