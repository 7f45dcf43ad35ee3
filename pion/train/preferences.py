"""Learning from preferences: what a step minimizes, and the loss on held-out preferences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pion.data.stream import Batch, RowStream, to_device
from pion.errors import BadInput
from pion.evaluation.held_out import Evaluation, in_batches, lacks_a_batch
from pion.train.feed import BatchFeed, StepBatch
from pion.train.objective import Objective
from pion.train.preference import Preference
from pion.train.preference_losses import (
    METRICS,
    PreferenceLoss,
    example_losses,
    metrics,
    sft_loss,
)
from pion.train.reference import sums_as_trained, unchanged

# What is reported of METRICS: the others say little of rows that are not trained on.
SHOWN = ("accuracy", "margin")


class PreferenceFeed(BatchFeed):
    """Rows of answers, of which the model learns which is better, or which are good."""

    @property
    def preference(self) -> Preference:
        """How the stage learns."""
        assert isinstance(self.settings.learning, Preference)
        return self.settings.learning

    def objective(self, batch: StepBatch, targets: Tensor) -> Objective:
        """Return the mean loss per pair or per single answer.

        Raises BadInput for rows that are not of preferences.
        """
        of_rank = [targets.new_full((), n, dtype=torch.float64) for n in answers(batch)]
        chosen, rejected, tokens = self.ranks.sum(torch.stack(of_rank)).unbind()
        counts = {
            "step": torch.ones_like(chosen),
            "examples": chosen if self.preference.paired else chosen + rejected,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_tokens": tokens,
        }
        return PreferenceLoss(self.preference, {name: n.clamp(min=1) for name, n in counts.items()})

    def evaluate(
        self,
        stream: RowStream,
        rows: range,
        micro_batch: int,
        end_of_text: int,
        vocab_size: int | None,
        on_batch: Callable[[], None],
    ) -> Evaluation:
        """Return the mean loss on held-out rows, with what else is measured; split over ranks.

        The rows have the numbers of the reference, if the loss needs one. The loss is that of
        training, over all ids, so its `sft_weight` counts. The forward pass is that of training, as
        the reference's was. The standard error takes each pair as independent. Raises BadInput
        without rows, and PionError if a single row does not fit into memory.
        """
        if not rows:
            raise BadInput("there are no held-out preferences: raise prefer.held_out")
        mine, sharded = rows[self.rank :: self.plan.world_size], self.model.sharded
        device = self.model.embed.weight.device
        totals = torch.zeros(len(fields(_Totals)), dtype=torch.float64, device=device)

        with unchanged(self.model), torch.no_grad():

            def compute(part: range) -> None:
                totals.add_(self._totals_of(stream.batch([mine[i] for i in part])))

            in_batches(len(mine), micro_batch, compute, on_batch, fixed=sharded)
            if sharded and lacks_a_batch(len(rows), self.rank, self.plan.world_size, micro_batch):
                self._totals_of(stream.batch(rows[:1]))
        self.ranks.sum(totals)
        return _Totals(*totals.tolist()).evaluation(self.preference, len(rows))

    def _totals_of(self, batch: Batch) -> Tensor:
        """Return the totals of a batch, in the order of `_Totals`, on the model's device."""
        on_device = to_device(batch, self.model.embed.weight.device)
        assert on_device.sequences is not None
        sums = sums_as_trained(self.model, on_device, self.plan)
        side = on_device.sequences.side
        losses = example_losses(self.preference, sums, on_device.sequences)
        measured = metrics(self.preference, sums, on_device.sequences)
        assert all(METRICS[name] == "examples" for name in SHOWN)
        examples = side > 0 if self.preference.paired else side != 0
        numbers = (
            losses.sum(),
            (losses**2).sum(),
            sft_loss(sums, on_device.sequences),
            *(measured[name] for name in SHOWN),
            examples.sum(),
            (on_device.sequences.tokens * (side > 0)).sum(),
            on_device.sequences.tokens.sum(),
        )
        return torch.stack([number.double() for number in numbers])


def answers(batch: StepBatch) -> tuple[int, int, int]:
    """Return how many chosen and rejected answers this rank has, and the tokens of the chosen.

    Raises BadInput for rows that are not of preferences.
    """
    chosen = rejected = tokens = 0
    for micro_batch in batch.micro_batches:
        if micro_batch.sequences is None:
            raise BadInput(
                "the stage learns from preferences, but its rows have no chosen and rejected "
                "answers. Prepare its data as preferences"
            )
        side = micro_batch.sequences.side
        chosen += int((side > 0).sum())
        rejected += int((side < 0).sum())
        tokens += int((micro_batch.sequences.tokens * (side > 0)).sum())
    return chosen, rejected, tokens


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
