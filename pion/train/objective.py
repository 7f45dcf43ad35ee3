"""What a step minimizes: the cross-entropy of its targets, or what a way of learning has instead.

An objective is a mean over the step of all ranks. So the sums of micro-batches are divided by
numbers of the whole step, and the result does not depend on how rows are divided into
micro-batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pion.data.stream import Batch
from pion.model.decoder import Decoder
from pion.model.feedforward.dense import Stats
from pion.model.forward_pass import StepOptions

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


class Objective(ABC):
    """What a step minimizes."""

    @abstractmethod
    def measured(self, model: Decoder, batch: Batch, options: StepOptions) -> Measured:
        """Return what a micro-batch on the model's device adds to the step."""

    def reported(self, loss: Tensor, measures: Measures) -> tuple[Tensor, Measures]:
        """Return the loss and the measures that a step reports, by their sums over the step."""
        return loss, measures


@dataclass(frozen=True)
class CrossEntropy(Objective):
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
