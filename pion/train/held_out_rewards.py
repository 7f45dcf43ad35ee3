"""The rewards of a model's answers to held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from pion.errors import BadInput
from pion.evaluation.held_out import Evaluation
from pion.train.gradients import Ranks
from pion.train.rollout_feed import Prompts, RolloutFeed

# Prompts that are sampled between two signs of life.
TOGETHER = 16


def evaluate_rewards(
    feed: RolloutFeed,
    prompts: Prompts,
    rows: range,
    *,
    rank: int,
    ranks: Ranks,
    on_batch: Callable[[], None],
) -> Evaluation:
    """Return minus the mean reward of answers to the prompts of rows, split over ranks.

    The same weights give the same answers each time. Raises BadInput without rows.
    """
    if not rows:
        raise BadInput("there are no held-out prompts: raise reinforce.held_out")
    means: list[float] = []
    totals: Counter[str] = Counter()
    mine = rows[rank :: ranks.world_size]
    for first in range(0, len(mine), TOGETHER):
        groups = feed.sampled(prompts, mine[first : first + TOGETHER])
        means += groups.judged.rewards.mean(dim=1).tolist()
        totals.update(groups.measures(prompts.pass_at))
        on_batch()
    found = ranks.gathered((means, totals))
    every = np.array([mean for means, _ in found for mean in means])
    totals = Counter()
    for _, one in found:
        totals.update(one)  # a sum of counters would leave out what is not above 0
    measures = feed.shares(totals, len(rows))
    measures["entropy"] = measures.pop("answer_nats") / measures["answer_tokens"]
    return Evaluation(
        loss=-float(every.mean()),
        sem=float(every.std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else float("nan"),
        tokens=int(totals["answer_tokens"]),
        rows=len(rows),
        measures=measures,
    )
