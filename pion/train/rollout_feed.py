"""Make the batch of a step that learns from rewards: sample answers, judge them, and pack them.

The batch is a pure function of the weights at the step's start and of the data position. So no
answer is ever stored, and a resumed run samples the same answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from pion.data.chat.packing import best_fit_decreasing
from pion.data.order import rank_rows, step_rows
from pion.data.stream import Batch, Sampled, map_batch
from pion.generation.rollouts import Prompt, Rollout, RolloutSettings, Sampler
from pion.model.decoder import ROLES_IN_FP32, Decoder
from pion.model.loss import IGNORED
from pion.model.parameters import parameter_roles
from pion.train.feed import RowRange, StepBatch
from pion.train.hardware import torch_dtype
from pion.train.reinforce import Reinforcement
from pion.train.settings import ComputePlan


class Judged(NamedTuple):
    """The rewards (prompts, answers) of answers, and what else is reported: sums over answers."""

    rewards: Tensor
    sums: Mapping[str, float]


@dataclass(frozen=True)
class Prompts:
    """What a stage of rewards learns on, or is measured on.

    Attributes:
        ids: returns the prompt of a row.
        judge: judges answers to the prompts of rows.
        seq_len: the tokens of a row that is trained on. A prompt and an answer fit into it.
        longest: the most ids of a prompt.
        stop_ids: any of them ends an answer.
        vocab_size: ids below it can be drawn.
        pass_at: an answer is right if its reward is at least this.
        seed: of all draws.
        held_out: whether nothing is trained on these prompts. They have draws of their own.
    """

    ids: Callable[[int], Sequence[int]]
    judge: Callable[[Sequence[int], Sequence[Sequence[Rollout]]], Judged]
    seq_len: int
    longest: int
    stop_ids: frozenset[int]
    vocab_size: int
    pass_at: float = 1.0
    seed: int = 0
    held_out: bool = False


@dataclass(frozen=True)
class Groups:
    """Prompts, the answers to each, and the judgement of these."""

    prompts: list[Prompt]
    answers: list[list[Rollout]]
    judged: Judged

    def measures(self, pass_at: float) -> dict[str, float]:
        """Return what is reported: sums over answers, or over groups (GROUPS)."""
        every = [answer for group in self.answers for answer in group]
        right = self.judged.rewards >= pass_at
        differ = self.judged.rewards != self.judged.rewards[:, :1]
        return {
            "reward": float(self.judged.rewards.sum()),
            "pass": float(right.sum()),
            "pass_any": float(right.any(dim=1).sum()),
            "signal": float(differ.any(dim=1).sum()),
            "unfinished": sum(not answer.finished for answer in every),
            "answer_tokens": sum(len(answer.ids) for answer in every),
            "answer_nats": -sum(sum(answer.log_probs) for answer in every),
            **self.judged.sums,
        }


# Measures of groups. The others are of answers.
GROUPS = ("pass_any", "signal")


class RolloutFeed:
    """The batches of one rank, as BatchFeed has them. A row is a prompt.

    A batch has the answers of groups whose rewards differ: the others teach nothing.
    """

    def __init__(
        self,
        model: Decoder,
        prompts: Prompts,
        learning: Reinforcement,
        plan: ComputePlan,
        *,
        global_batch: int,
        rank: int,
    ) -> None:
        self._model, self._prompts, self._learning = model, prompts, learning
        self._global_batch, self._rank = global_batch, rank
        self._twin = _in_dtype(model, torch_dtype(plan.dtype))
        self._plan, self._sampler = plan, self._sampler_by(plan)

    def follow(self, plan: ComputePlan) -> None:
        """Let the next batches be those of another plan."""
        self._plan, self._sampler = plan, self._sampler_by(plan)

    def _sampler_by(self, plan: ComputePlan) -> Sampler:
        learning, prompts = self._learning, self._prompts
        sampling = RolloutSettings(
            learning.answers,
            learning.max_tokens,
            prompts.stop_ids,
            prompts.vocab_size,
            prompts.seed,
        )
        return Sampler(self._twin, sampling, rows=plan.rollout_rows or 1, longest=prompts.longest)

    def take(self, next_row: int, skipped: list[RowRange]) -> StepBatch:
        """Return the batch of the step at `next_row`, of the model's weights of now.

        Raises BadInput if there are fewer rows in a step than ranks, or the model predicts NaN.
        """
        rows, after = step_rows(next_row, self._global_batch, skipped)
        (own,) = rank_rows(rows, self._rank, self._plan.world_size, len(rows))
        groups = self.sampled(self._prompts, own)
        advantages = self._learning.advantages(groups.judged.rewards)
        learned = [
            Learned(prompt.ids, answer, float(weight))
            for prompt, group, weights in zip(
                groups.prompts, groups.answers, advantages, strict=True
            )
            if weights.any()
            for answer, weight in zip(group, weights, strict=True)
        ]
        multiple = self._plan.micro_batch if self._plan.compile else 1
        packed = pack(learned, self._prompts.seq_len, multiple)
        measures = groups.measures(self._prompts.pass_at)
        tokens = int(measures["answer_tokens"])
        return StepBatch(
            (next_row, after),
            list(_micro_batches(packed, self._plan.micro_batch)),
            tokens,
            learns=bool(learned),
            measures={"mismatch": 0.0} | self.shares(measures, self._global_batch),
        )

    def sampled(self, prompts: Prompts, rows: Sequence[int]) -> Groups:
        """Return the answers of the model's weights of now to the prompts of rows."""
        # Held-out rows have numbers that no training row has.
        asked = [Prompt(-1 - row if prompts.held_out else row, prompts.ids(row)) for row in rows]
        refresh(self._twin, self._model)
        answers = self._sampler.sample(asked)
        return Groups(asked, answers, prompts.judge(rows, answers))

    def shares(self, measures: Mapping[str, float], groups: int) -> dict[str, float]:
        """Return measures as parts of the means over so many groups."""
        answers = groups * self._learning.answers
        return {n: v / (groups if n in GROUPS else answers) for n, v in measures.items()}

    def prepare(self, next_row: int, skipped: list[RowRange]) -> None:
        """Do nothing: the next batch needs the next weights."""

    def close(self) -> None:
        """Do nothing: there is no thread."""


def _in_dtype(model: Decoder, dtype: torch.dtype) -> Decoder:
    """Return the model for generation, with matrices in `dtype`. What keeps its dtype is shared."""
    twin = model.twin().eval()
    roles = parameter_roles(model)
    for name, param in twin.named_parameters():
        if roles.get(name, "vector") not in ROLES_IN_FP32:
            param.data = param.data.to(dtype)
    return twin


@torch.no_grad()
def refresh(twin: Decoder, model: Decoder) -> None:
    """Copy the weights to where graphs of the twin read them."""
    for own, param in zip(twin.parameters(), model.parameters(), strict=True):
        if own.data_ptr() != param.data_ptr():
            own.copy_(param)


@dataclass(frozen=True)
class Learned:
    """An answer to learn with a weight, after its prompt."""

    prompt: Sequence[int]
    answer: Rollout
    weight: float

    @property
    def count(self) -> int:
        """How many tokens are read: the last one is only predicted."""
        return len(self.prompt) + len(self.answer.ids) - 1


def pack(learned: Sequence[Learned], seq_len: int, multiple: int = 1) -> Batch:
    """Pack answers into rows of `seq_len` tokens, each with its prompt as one document.

    The number of rows is a multiple of `multiple`, because compiled kernels are of one shape. There
    is at least one row: the ranks of a group compute together.
    """
    bins = best_fit_decreasing([one.count for one in learned], seq_len)
    shape = max(1, -(-len(bins) // multiple)) * multiple, seq_len
    tokens, positions = torch.zeros(2, *shape, dtype=torch.int64)
    targets, documents = torch.full(shape, IGNORED), torch.full(shape, -1)
    weights, log_probs = torch.zeros(2, *shape)
    for row, members in enumerate(bins):
        start = 0
        for document, one in enumerate(learned[member] for member in members):
            ids = torch.tensor([*one.prompt, *one.answer.ids])
            end, first = start + one.count, start + len(one.prompt) - 1
            tokens[row, start:end] = ids[:-1]
            positions[row, start:end] = torch.arange(one.count)
            documents[row, start:end] = document
            targets[row, first:end] = ids[len(one.prompt) :]
            weights[row, first:end] = one.weight
            log_probs[row, first:end] = torch.tensor(one.answer.log_probs)
            start = end
    return Batch(tokens, targets, positions, documents, sampled=Sampled(weights, log_probs))


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    for first in range(0, len(batch.tokens), size):
        yield map_batch(itemgetter(slice(first, first + size)), batch)
