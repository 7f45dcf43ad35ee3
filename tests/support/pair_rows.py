"""Rows of pairs for the tests, and a model of plain PyTorch in fp64 that learns from the pairs.

The model sees each prompt with its answer alone, pads them, computes all logits, and leaves all
derivatives to autograd. It shares no code with pion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import plain_torch
from pion.config.model_config import ModelConfig
from pion.data.sequences import sequences_of_rows
from pion.data.stream import Batch, RowStream
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

CONFIG = tiny_config(init_std=0.3)
# Longer than the model's context: only each sequence has to fit.
ROW = 40
IGNORED = -100


class Pair(NamedTuple):
    """Token ids. `reference` are the reference's sums of both answers, in nats."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reference: tuple[float, float]

    @property
    def sequences(self) -> list[list[int]]:
        return [self.prompt + self.chosen, self.prompt + self.rejected]


def random_pairs(rows: int, *, each: int | None = None, seed: int = 0) -> list[list[Pair]]:
    """Return the pairs of rows: `each` in a row, or between 1 and 3."""
    random = np.random.default_rng(seed)

    def ids(least: int, most: int) -> list[int]:
        length = random.integers(least, most + 1)
        return [int(n) for n in random.integers(0, CONFIG.vocab_size, length)]

    def pair() -> Pair:
        reference = -random.uniform(1, 40, 2)
        return Pair(ids(1, 3), ids(1, 4), ids(1, 3), (float(reference[0]), float(reference[1])))

    return [[pair() for _ in range(each or random.integers(1, 4))] for _ in range(rows)]


@dataclass
class PairRows:
    """A stream of rows of pairs. `single` makes every answer an example.

    `pad` is the id of padding. Rows that follow the last one begin again.
    """

    rows: list[list[Pair]]
    single: bool = False
    pad: int = 0

    @property
    def total_rows(self) -> int:
        return len(self.rows)

    def at(self, i: int) -> list[Pair]:
        """Return the pairs of training row `i`."""
        return self.rows[i % len(self.rows)]

    def batch(self, indices: Sequence[int]) -> Batch:
        rows = [self.at(i) for i in indices]
        made = [_row([s for pair in row for s in _marked(pair)], self.pad) for row in rows]
        tokens, targets, positions, documents = map(torch.stack, zip(*made, strict=True))
        sequences = sequences_of_rows(
            [[1, -1] * len(row) for row in rows],
            documents,
            targets != IGNORED,
            [[number for pair in row for number in pair.reference] for row in rows],
            paired=not self.single,
        )
        return Batch(tokens, targets, positions, documents, sequences)

    def as_stream(self) -> RowStream:
        return cast(RowStream, self)


def _marked(pair: Pair) -> list[tuple[list[int], int]]:
    return [(ids, len(pair.prompt)) for ids in pair.sequences]


def _row(sequences: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, ...]:
    tokens, positions = torch.full((ROW,), pad), torch.zeros(ROW, dtype=torch.int64)
    targets, documents = torch.full((ROW,), IGNORED), torch.full((ROW,), -1)
    start = 0
    for number, (ids, prompt) in enumerate(sequences):
        here = slice(start, start + len(ids))
        tokens[here], positions[here] = torch.tensor(ids), torch.arange(len(ids))
        documents[here] = number
        targets[start + prompt - 1 : here.stop - 1] = torch.tensor(ids[prompt:])
        start = here.stop
    return tokens, targets, positions, documents


# ---------------------------------------------------------------- the plain model


class Sums(NamedTuple):
    """Of all pairs of a step, in fp64: the model's and the reference's sums, and the tokens."""

    a: Tensor
    b: Tensor
    r_w: Tensor
    r_l: Tensor
    n_w: Tensor
    n_l: Tensor


Loss = Callable[[Sums], Tensor]


class PlainModel:
    """The decoder's weights in plain PyTorch, in fp64, and torch's AdamW."""

    def __init__(self, decoder: Decoder, lr: float) -> None:
        config: ModelConfig = decoder.config
        self.model = plain_torch.PlainDecoder(config)
        self.model.load_state_dict(decoder.state_dict())
        self.model.double()
        for module in self.model.modules():
            if isinstance(module, plain_torch.RMSNorm):
                module.__class__ = nn.RMSNorm  # which does not round to fp32
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        )

    def sums(self, pairs: Sequence[Pair]) -> Sums:
        """Return what the losses of these pairs are made of."""
        sequences = [ids for pair in pairs for ids in pair.sequences]
        longest = max(map(len, sequences))
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
        model: Any = self.model
        x = model.embed(tokens)
        for block in model.blocks:
            x = block(x, model.cos[:longest], model.sin[:longest])
        log_probs = (model.norm(x) @ model.embed.weight.T).log_softmax(dim=-1)
        totals = []
        for row, ids in enumerate(sequences):
            prompt = len(pairs[row // 2].prompt)
            totals.append(
                sum(log_probs[row, place - 1, ids[place]] for place in range(prompt, len(ids)))
            )
        both = torch.stack(cast(list[Tensor], totals)).view(-1, 2)
        references = torch.tensor([pair.reference for pair in pairs], dtype=torch.float64)
        lengths = [[len(pair.chosen), len(pair.rejected)] for pair in pairs]
        counts = torch.tensor(lengths, dtype=torch.float64)
        return Sums(*both.T, *references.T, *counts.T)

    def step(self, pairs: Sequence[Pair], loss_of: Loss) -> float:
        """Train on one step, and return its loss."""
        loss = loss_of(self.sums(pairs))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())
