"""Make the batch of a step that learns from rewards: sample answers, judge them, and pack them.

The batch is a pure function of the weights at the step's start and of the data position. So no
answer is ever stored, and a resumed run samples the same answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from pion.data.chat.packing import best_fit_decreasing
from pion.data.order import rank_rows, step_rows
from pion.data.stream import Batch, Sampled, map_batch
from pion.errors import BadInput
from pion.evaluation.held_out import Evaluation
from pion.generation.rollouts import Prompt, Rollout, RolloutSettings, Sampler
from pion.model.decoder import ROLES_IN_FP32, Decoder
from pion.model.loss import IGNORED
from pion.model.parameters import parameter_roles
from pion.train.feed import RowRange, StepBatch
from pion.train.gradients import Ranks
from pion.train.hardware import torch_dtype
from pion.train.objective import Objective
from pion.train.reinforce import WITHOUT_LOSS, Reinforcement, differ
from pion.train.rewards import RewardLoss
from pion.train.settings import ComputePlan, TrainSettings

# Held-out prompts that are sampled between two signs of life.
TOGETHER = 16


class Judged(NamedTuple):
    """The rewards of answers, fp64 (prompts, answers), and in such tensors what is reported next to
    them, by name."""

    rewards: Tensor
    by_name: Mapping[str, Tensor]


class Said(NamedTuple):
    """A prompt, and its answers: the reward and the text of each."""

    prompt: str
    answers: list[tuple[float, str]]

    def best_and_worst(self) -> str:
        """Return the answers with the highest and with the lowest reward, each after its reward."""
        return "\n".join(
            f"reward {reward:.3g}: {text.strip()}"
            for reward, text in (max(self.answers), min(self.answers))
        )


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
        said: returns the prompts that were judged last.
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
    said: Callable[[], Sequence[Said]] = tuple


@dataclass(frozen=True)
class Groups:
    """Prompts, the answers to each, and the judgement of these."""

    prompts: list[Prompt]
    answers: list[list[Rollout]]
    judged: Judged

    def means(self, pass_at: float) -> dict[str, Tensor]:
        """Return what is reported of each prompt: means over its answers, fp64 (prompts,).

        `signal` is 1 if the rewards differ, and `pass_any` if one is at least `pass_at`.
        """
        rewards = self.judged.rewards
        right = (rewards >= pass_at).double()
        of_answers = {
            "reward": rewards,
            "pass": right,
            "unfinished": self._of_each(lambda answer: not answer.finished),
            "answer_tokens": self._of_each(lambda answer: len(answer.ids)),
            "answer_nats": self._of_each(lambda answer: -sum(answer.log_probs)),
            **self.judged.by_name,
        }
        return {name: values.mean(dim=1) for name, values in of_answers.items()} | {
            "pass_any": right.amax(dim=1),
            "signal": differ(rewards).double(),
        }

    def _of_each(self, value: Callable[[Rollout], float]) -> Tensor:
        return torch.tensor([[float(value(a)) for a in each] for each in self.answers]).double()


class RolloutFeed:
    """The batches of one rank, and what to do with them, as BatchFeed has it. A row is a prompt.

    A batch has the answers of groups whose rewards differ: the others teach nothing.
    """

    without_loss = WITHOUT_LOSS

    def __init__(
        self,
        model: Decoder,
        prompts: Prompts,
        settings: TrainSettings,
        plan: ComputePlan,
        *,
        rank: int,
        ranks: Ranks,
    ) -> None:
        assert isinstance(settings.learning, Reinforcement)
        self._model, self._prompts, self._learning = model, prompts, settings.learning
        self._global_batch, self._rank, self._ranks = settings.global_batch, rank, ranks
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
        (rank_share,) = rank_rows(rows, self._rank, self._plan.world_size, len(rows))
        groups = self.sampled(self._prompts, rank_share)
        size, learned = self._plan.micro_batch, self._learned(groups)
        windows = self._model.config.windows
        packed = pack(
            learned,
            self._prompts.seq_len,
            size if self._plan.compile else 1,
            block=1 if windows is None else windows.block,
        )
        means = groups.means(self._prompts.pass_at)
        targets = sum(len(answer.ids) for each in groups.answers for answer in each)
        starts = range(0, len(packed.tokens), size)
        return StepBatch(
            (next_row, after),
            [map_batch(itemgetter(slice(first, first + size)), packed) for first in starts],
            targets,
            rounds=self._ranks.most(len(starts)),
            tokens=self._plan.world_size * targets,
            learns=self._ranks.any(bool(learned)),
            measures={"mismatch": 0.0, "learned": float((packed.targets != IGNORED).sum())}
            | {name: float(each.sum()) / self._global_batch for name, each in means.items()},
        )

    def _learned(self, groups: Groups) -> list[Learned]:
        """Return the answers of groups with a signal. So many as fit a row share their prompt."""
        learned: list[Learned] = []
        hides = self._model.config.hides_in(self._prompts.seq_len)
        advantages = self._learning.advantages(groups.judged.rewards)
        for prompt, group, weights in zip(groups.prompts, groups.answers, advantages, strict=True):
            room = self._prompts.seq_len - len(prompt.ids) + 1
            alone = [[number] for number in range(len(group))]
            shared = best_fit_decreasing([len(answer.ids) for answer in group], room)
            learned += [
                Learned(prompt.ids, [(group[n], float(weights[n])) for n in members])
                for members in (alone if hides else shared)
                if weights.any()
            ]
        return learned

    def sampled(self, prompts: Prompts, rows: Sequence[int]) -> Groups:
        """Return the answers of the model's weights of now to the prompts of rows."""
        # Held-out rows have numbers that no training row has.
        questions = [
            Prompt(-1 - row if prompts.held_out else row, prompts.ids(row)) for row in rows
        ]
        refresh(self._twin, self._model)
        answers = self._sampler.sample(questions)
        return Groups(questions, answers, prompts.judge(rows, answers))

    def objective(self, batch: StepBatch, targets: Tensor) -> Objective:
        """Return the loss of answers. `targets` is how many tokens were sampled in the step."""
        return RewardLoss(1 / targets.clamp(min=1.0))

    def evaluate(
        self,
        prompts: Prompts,
        rows: range,
        micro_batch: int = 1,
        end_of_text: int = 0,
        vocab_size: int | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Return minus the mean reward of answers to the prompts of rows, split over ranks.

        The same weights give the same answers each time. Raises BadInput without rows.
        """
        if not rows:
            raise BadInput("there are no held-out prompts: raise reinforce.held_out")
        means_here = []
        mine = rows[self._rank :: self._ranks.world_size]
        for first in range(0, len(mine), TOGETHER):
            groups = self.sampled(prompts, mine[first : first + TOGETHER])
            means_here.append(groups.means(prompts.pass_at))
            on_batch()
        parts = [means for each in self._ranks.gathered(means_here) for means in each]
        every = {name: torch.cat([means[name] for means in parts]) for name in parts[0]}
        measures = {name: float(each.mean()) for name, each in every.items()}
        tokens = measures["answer_tokens"]
        measures["entropy"] = measures.pop("answer_nats") / tokens
        return Evaluation(
            loss=-measures["reward"],
            sem=float(every["reward"].std() / len(rows) ** 0.5),
            tokens=round(tokens * len(rows) * self._learning.answers),
            rows=len(rows),
            measures=measures,
        )

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
    for copy, param in zip(twin.parameters(), model.parameters(), strict=True):
        if copy.data_ptr() != param.data_ptr():
            copy.copy_(param)


@dataclass(frozen=True)
class Learned:
    """Answers to learn, each with a weight, after their prompt."""

    prompt: Sequence[int]
    answers: Sequence[tuple[Rollout, float]]

    @property
    def count(self) -> int:
        """How many tokens are read. The last one of the prompt predicts how each answer begins, so
        it is read once for each of them. The last one of an answer is only predicted."""
        return len(self.prompt) - 1 + sum(len(answer.ids) for answer, _ in self.answers)


def pack(learned: Sequence[Learned], seq_len: int, multiple: int = 1, *, block: int = 1) -> Batch:
    """Pack answers into rows of `seq_len` tokens, each prompt and its answers as one document.

    The number of rows is a multiple of `multiple`, because compiled kernels are of one shape. There
    is at least one row: the ranks of a group compute together. A document begins at a multiple of
    `block`, as when it was sampled: windows are blocks of the row.
    """
    sizes = [min(item.count + -item.count % block, seq_len) for item in learned]
    bins = best_fit_decreasing(sizes, seq_len)
    shape = max(1, -(-len(bins) // multiple)) * multiple, seq_len
    tokens, positions, branches = torch.zeros(3, *shape, dtype=torch.int64)
    targets, documents = torch.full(shape, IGNORED), torch.full(shape, -1)
    weights, log_probs = torch.zeros(2, *shape)
    for row, members in enumerate(bins):
        end = 0
        for document, item in enumerate(learned[member] for member in members):
            *shared, last = item.prompt
            start = end + -end % block
            end = start + len(shared)
            tokens[row, start:end] = torch.tensor(shared, dtype=torch.int64)
            positions[row, start:end] = torch.arange(len(shared))
            documents[row, start : start + item.count] = document
            for branch, (answer, weight) in enumerate(item.answers, start=1):
                start, end = end, end + len(answer.ids)
                tokens[row, start:end] = torch.tensor([last, *answer.ids[:-1]])
                positions[row, start:end] = torch.arange(len(shared), len(shared) + end - start)
                branches[row, start:end] = branch
                targets[row, start:end] = torch.tensor(answer.ids)
                weights[row, start:end] = weight
                log_probs[row, start:end] = torch.tensor(answer.log_probs)
    return Batch(
        tokens, targets, positions, documents, sampled=Sampled(weights, log_probs, branches)
    )
