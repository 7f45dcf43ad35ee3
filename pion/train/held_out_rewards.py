"""The rewards of a model's answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pion.errors import BadInput
from pion.evaluation.held_out import Evaluation, evaluating
from pion.model.decoder import Decoder
from pion.model.loss import IGNORED
from pion.train.gradients import Ranks
from pion.train.rollout_feed import Prompts, RolloutFeed

# Prompts that are sampled between two signs of life.
TOGETHER = 16


def answer_nats(model: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return minus the log-probability of an answer after a prompt, in nats."""
    ids = torch.tensor([[*prompt, *answer]], device=model.embed.weight.device)
    targets = ids[:, 1:].clone()
    targets[:, : len(prompt) - 1] = IGNORED
    with evaluating(model):
        return -float(model.log_probs(ids[:, :-1], targets).log_probs.sum())


def evaluate_rewards(
    feed: RolloutFeed,
    prompts: Prompts,
    rows: range,
    *,
    rank: int,
    ranks: Ranks,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Return minus the mean reward of answers to the prompts of rows, split over ranks.

    The same weights give the same answers each time. Raises BadInput without rows.
    """
    if not rows:
        raise BadInput("there are no held-out prompts: raise reinforce.held_out")
    own = []
    mine = rows[rank :: ranks.world_size]
    for first in range(0, len(mine), TOGETHER):
        groups = feed.sampled(prompts, mine[first : first + TOGETHER])
        own.append((groups.means(prompts.pass_at), groups.judged.rewards.shape[1]))
        on_batch()
    found = [part for parts in ranks.gathered(own) for part in parts]
    every = {name: torch.cat([means[name] for means, _ in found]) for name in found[0][0]}
    measures = {name: float(each.mean()) for name, each in every.items()}
    tokens = measures["answer_tokens"]
    measures["entropy"] = measures.pop("answer_nats") / tokens
    return Evaluation(
        loss=-measures["reward"],
        sem=float(every["reward"].std() / len(rows) ** 0.5),
        tokens=round(tokens * len(rows) * found[0][1]),
        rows=len(rows),
        measures=measures,
    )
