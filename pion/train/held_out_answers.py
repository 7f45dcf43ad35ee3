"""The held-out answers of preferences, and what a model gives for each of them.

The forward pass is that of an evaluation, with hidden states in fp32 between blocks. Numbers of a
reference that was computed so differ from these by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pion.data.shards import IGNORED
from pion.data.stream import Batch, RowStream, to_device
from pion.errors import BadInput
from pion.evaluation.agreement import LabelledAnswers
from pion.evaluation.held_out import evaluating, in_batches
from pion.model.decoder import Decoder
from pion.train.preference_losses import answer_sums


@dataclass(frozen=True)
class HeldOutAnswers:
    """The answers in held-out rows.

    Attributes:
        labels: their lengths, sides and prompts.
        prompts: the ids of each prompt, by its number, in the order of the rows.
        reference: what the stream's reference gives for each answer, in nats, fp64 (n,); 0 without
            one.
    """

    labels: LabelledAnswers
    prompts: list[list[int]]
    reference: np.ndarray


def read_answers(stream: RowStream, rows: Sequence[int], *, paired: bool) -> HeldOutAnswers:
    """Return the answers in these rows. Raises BadInput if there are no rows, or if a shard can't
    be read."""
    if not rows:
        raise BadInput("there are no held-out preferences: raise prefer.held_out")
    numbers: dict[tuple[int, ...], int] = {}
    answers: list[tuple[int, bool, int, float]] = []
    for row in rows:
        batch = stream.batch([row])
        assert batch.sequences is not None
        side, reference = batch.sequences.side[0].tolist(), batch.sequences.reference[0].tolist()
        for number, tokens in enumerate(batch.sequences.tokens[0].tolist()):
            if side[number]:
                prompt = numbers.setdefault(_prompt(batch, number), len(numbers))
                answers.append((tokens, side[number] > 0, prompt, reference[number]))
    tokens, preferred, prompts, sums = map(np.array, zip(*answers, strict=True))
    labels = LabelledAnswers(tokens, preferred, prompts, paired)
    return HeldOutAnswers(labels, [list(ids) for ids in numbers], sums)


def _prompt(batch: Batch, number: int) -> tuple[int, ...]:
    """Return the ids before the first learned one of a sequence of a batch of one row."""
    assert batch.documents is not None
    inside = batch.documents[0] == number
    # The target of a token is the one after it.
    before = int((batch.targets[0][inside] != IGNORED).int().argmax()) + 1
    ids: list[int] = batch.tokens[0][inside][:before].tolist()
    return tuple(ids)


def sums_of_answers(
    model: Decoder,
    stream: RowStream,
    rows: Sequence[int],
    micro_batch: int,
    dtype: torch.dtype,
    on_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the sum of log-probabilities of each answer in these rows, in nats, fp64 (n,).

    The order is that of `read_answers`. `on_batch` is called after each batch, and may end the
    measurement. Raises PionError if a single row does not fit into memory.
    """
    device = model.embed.weight.device
    parts: list[np.ndarray] = []

    def compute(part: range) -> None:
        batch = stream.batch([rows[i] for i in part])
        assert batch.sequences is not None
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            sums, _ = answer_sums(model, to_device(batch, device))
        parts.append(sums.cpu().numpy()[batch.sequences.side.numpy() != 0])

    with evaluating(model):
        in_batches(len(rows), micro_batch, compute, on_batch)
    return np.concatenate(parts)
