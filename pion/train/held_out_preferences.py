"""The loss and the accuracy of a model on held-out preferences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from pion.data.stream import Batch, RowStream, to_device
from pion.errors import BadInput
from pion.evaluation.held_out import Evaluation, in_batches, lacks_a_batch
from pion.model.decoder import Decoder
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS, example_losses, metrics, sft_loss
from pion.train.reference import sums_as_trained, unchanged
from pion.train.settings import ComputePlan

# What is reported of METRICS: the others say little of rows that are not trained on.
SHOWN = ("accuracy", "margin")


@dataclass(frozen=True)
class PreferenceScorer:
    """A model to measure on preferences, and how to compute it.

    The forward pass is that of training by `plan`, as the reference's was. `on_batch` is called
    after each batch, and may end the measurement.
    """

    model: Decoder
    preference: Preference
    micro_batch: int
    plan: ComputePlan
    on_batch: Callable[[], None] = lambda: None


def evaluate_preferences(
    scorer: PreferenceScorer,
    stream: RowStream,
    rows: Sequence[int],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Return the mean loss on held-out rows, with what else is measured; split over ranks.

    The rows have the numbers of the reference, if the loss needs one. The loss is that of training,
    so its `sft_weight` counts. The standard error takes each pair as independent. Raises BadInput
    without rows, and PionError if a single row does not fit into memory.
    """
    if not rows:
        raise BadInput("there are no held-out preferences: raise prefer.held_out")
    mine = rows[rank::world_size]
    device = scorer.model.embed.weight.device
    totals = torch.zeros(len(fields(_Totals)), dtype=torch.float64, device=device)

    with unchanged(scorer.model), torch.no_grad():

        def compute(part: range) -> None:
            totals.add_(_totals_of(scorer, stream.batch([mine[i] for i in part])))

        micro_batch, sharded = scorer.micro_batch, scorer.model.sharded
        in_batches(len(mine), micro_batch, compute, scorer.on_batch, fixed=sharded)
        if sharded and lacks_a_batch(len(rows), rank, world_size, micro_batch):
            _totals_of(scorer, stream.batch(rows[:1]))
    if world_size > 1:
        dist.all_reduce(totals)
    return _Totals(*totals.tolist()).evaluation(scorer.preference, len(rows))


@dataclass(frozen=True)
class _Totals:
    """Sums over examples: of losses, of their squares, and of what METRICS has; and counts."""

    loss: float
    squares: float
    sft: float
    accuracy: float
    margin: float
    examples: float
    chosen_tokens: float
    targets: float

    def evaluation(self, preference: Preference, rows: int) -> Evaluation:
        n = self.examples
        mean = self.loss / n
        variance = max(0.0, self.squares - n * mean**2) / (n - 1) if n > 1 else math.nan
        sft = preference.sft_weight * self.sft / max(1.0, self.chosen_tokens)
        return Evaluation(
            loss=mean + sft,
            sem=math.sqrt(variance / n),
            tokens=int(self.targets),
            rows=rows,
            measures={name: getattr(self, name) / n for name in SHOWN},
        )


def _totals_of(scorer: PreferenceScorer, batch: Batch) -> Tensor:
    """Return the totals of a batch, in the order of `_Totals`, on the model's device."""
    there = to_device(batch, scorer.model.embed.weight.device)
    assert there.sequences is not None
    sums = sums_as_trained(scorer.model, there, scorer.plan)
    side = there.sequences.side
    losses = example_losses(scorer.preference, sums, there.sequences)
    measured = metrics(scorer.preference, sums, there.sequences)
    assert all(METRICS[name] == "examples" for name in SHOWN)
    examples = side > 0 if scorer.preference.paired else side != 0
    numbers = (
        losses.sum(),
        (losses**2).sum(),
        sft_loss(sums, there.sequences),
        *(measured[name] for name in SHOWN),
        examples.sum(),
        (there.sequences.tokens * (side > 0)).sum(),
        there.sequences.tokens.sum(),
    )
    return torch.stack([number.double() for number in numbers])
