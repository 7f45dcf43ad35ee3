"""What a step minimizes: the cross-entropy of its targets, or a loss of preferences or rewards.

Both are means over the step of all ranks. So the sums of micro-batches are divided by numbers of
the whole step, and the result does not depend on how rows are divided into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pion.data.stream import Batch
from pion.model.decoder import Decoder
from pion.model.feedforward.dense import Stats
from pion.model.forward_pass import StepOptions
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS, answer_sums, example_losses, metrics, sft_loss

if TYPE_CHECKING:
    from pion.train.feed import StepBatch
    from pion.train.settings import TrainSettings

# A rank's part of the numbers that a step reports, by name: scalars that add up over micro-batches
# and ranks.
Measures = dict[str, Tensor]


class Measured(NamedTuple):
    """What a micro-batch adds to the loss of a step, and what it reports.

    `loss` and `aux` are scalars in fp32; `aux` is summed over rows.
    """

    loss: Tensor
    aux: Tensor
    stats: Stats
    measures: Measures


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy per target. `scale` is one by the step's number of targets."""

    scale: Tensor

    def measured(self, model: Decoder, batch: Batch, options: StepOptions) -> Measured:
        """Return what a micro-batch on the model's device adds to the step."""
        losses = model.losses(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            options=options,
        )
        return Measured(losses.ce * self.scale, losses.aux, losses.stats, {})


@dataclass(frozen=True)
class OfPreferences:
    """The mean loss per pair or per single answer; see preference_losses.py.

    `counts` has the numbers of a step that METRICS names, fp64 scalars of at least 1.
    """

    preference: Preference
    counts: dict[str, Tensor]

    def measured(self, model: Decoder, batch: Batch, options: StepOptions) -> Measured:
        """Return what a micro-batch on the model's device adds to the step."""
        assert batch.sequences is not None
        sums, found = answer_sums(model, batch, options)
        losses = example_losses(self.preference, sums, batch.sequences)
        loss = losses.sum() / self.counts["examples"]
        if self.preference.sft_weight:
            per_token = sft_loss(sums, batch.sequences) / self.counts["chosen_tokens"]
            loss = loss + self.preference.sft_weight * per_token
        measures = {
            name: (value / self.counts[METRICS[name]]).float()
            for name, value in metrics(self.preference, sums.detach(), batch.sequences).items()
        }
        return Measured(loss.float(), found.aux, found.stats, measures)


@dataclass(frozen=True)
class OfRewards:
    """Minus the mean of weight · log-probability, of all tokens that were sampled in the step
    (Yu et al. 2025, "DAPO"). `scale` is one by their number.

    Answers are learned once, from the weights that drew them. So the ratio of probabilities, which
    others clip, is 1.
    """

    scale: Tensor

    def measured(self, model: Decoder, batch: Batch, options: StepOptions) -> Measured:
        """Return what a micro-batch on the model's device adds to the step."""
        assert batch.sampled is not None
        found = model.log_probs(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            branches=batch.sampled.branches,
            options=options,
        )
        loss = -(found.log_probs * batch.sampled.weights).sum() * self.scale
        apart = (found.log_probs.detach() - batch.sampled.log_probs).abs().sum()
        # Routers learn from the answers alone, and WITHOUT_LOSS nothing.
        return Measured(loss, torch.zeros_like(loss), {}, {"mismatch": apart})


# What a step minimizes.
Objective = CrossEntropy | OfPreferences | OfRewards


def objective_of(
    settings: TrainSettings,
    batch: StepBatch,
    targets: Tensor,
    over_ranks: Callable[[Tensor], Tensor],
) -> Objective:
    """Return what the step of this batch minimizes. `targets` is the step's number of targets.

    Every rank calls this function, and `over_ranks` returns the sum of all ranks' tensors.
    Raises BadInput for rows that are not of preferences.
    """
    if settings.reinforcement is not None:
        return OfRewards(1 / targets.clamp(min=1.0))
    preference = settings.preference
    if preference is None:
        return CrossEntropy(1 / targets.clamp(min=1.0))
    own = [torch.full((), n, device=targets.device, dtype=torch.float64) for n in batch.answers()]
    chosen, rejected, tokens = over_ranks(torch.stack(own)).unbind()
    counts = {
        "step": torch.ones_like(chosen),
        "examples": chosen if preference.paired else chosen + rejected,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_tokens": tokens,
    }
    counts = {name: n.clamp(min=1) for name, n in counts.items()}
    return OfPreferences(preference, counts)
