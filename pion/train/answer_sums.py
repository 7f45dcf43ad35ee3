"""What a model gives for the answers in rows of preferences: sums of log-probabilities."""

from __future__ import annotations

from torch import Tensor

from pion.data.sequences import sequence_sums
from pion.data.stream import Batch
from pion.model.decoder import Decoder, LogProbs
from pion.model.forward_pass import AS_THE_MODEL, StepOptions


def answer_sums(
    model: Decoder, batch: Batch, options: StepOptions = AS_THE_MODEL
) -> tuple[Tensor, LogProbs]:
    """Return the sum of log-probabilities of each answer, fp64 (B, S) in nats, and the pass.

    The batch is on the model's device, and has S answers in its fullest row.
    """
    assert batch.sequences is not None
    assert batch.documents is not None
    found = model.log_probs(
        batch.tokens,
        batch.targets,
        positions=batch.positions,
        documents=batch.documents,
        options=options,
    )
    return sequence_sums(found.log_probs, batch.documents, batch.sequences.side.shape[1]), found
