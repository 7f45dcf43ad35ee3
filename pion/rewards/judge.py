"""Judge groups of answers by several rewards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from pion.rewards.answered import Answered
from pion.rewards.builtin import BuiltinReward
from pion.rewards.function import FunctionReward

# Of the answers that are judged together: beyond this share of errors, a reward is broken.
MOST_ERRORS = 0.01
# What judges answers. Who reads its `errors` may clear them.
Reward = BuiltinReward | FunctionReward


@dataclass(frozen=True)
class Judged:
    """What answers got: numbers [groups][answers].

    Attributes:
        total: the weighted mean of the rewards. An answer without an end gets the lowest mean in
            its group, and at most 0: nothing is gained by never ending.
        by_name: each reward's own values, also for answers without an end.
        seconds: how long each reward took for all of them.
    """

    total: list[list[float]]
    by_name: dict[str, list[list[float]]]
    seconds: dict[str, float]


class Judge:
    """Judges by rewards with weights, whose sum must be above 0. It is for one thread."""

    def __init__(self, rewards: Sequence[tuple[Reward, float]]) -> None:
        names = _unique(reward.name for reward, _ in rewards)
        self._weights = dict(zip(names, (weight for _, weight in rewards)))
        # By name: a name that comes again has a number.
        self.rewards = dict(zip(names, (reward for reward, _ in rewards)))

    def judge(self, groups: Sequence[Sequence[Answered]]) -> Judged:
        """Judge answers. Each reward sees a group at a time, and raises what it raises. A reward
        with more than MOST_ERRORS is not asked for the other answers: these get 0."""
        by_name, seconds = {}, {}
        for name, reward in self.rewards.items():
            started, most = time.monotonic(), MOST_ERRORS * sum(map(len, groups))
            by_name[name] = [reward.judge(group, most) for group in groups]
            seconds[name] = time.monotonic() - started
        total = [
            self._totals(group, [*zip(*judged)])
            for group, *judged in zip(groups, *by_name.values())
        ]
        return Judged(total, by_name, seconds)

    def close(self) -> None:
        """End the processes of the rewards."""
        for reward in self.rewards.values():
            reward.close()

    def _totals(self, group: Sequence[Answered], judged: Sequence[Sequence[float]]) -> list[float]:
        weights = self._weights.values()
        # Rounded: 0.1 + 0.2 is as good as 0.3, and answers whose rewards differ teach something.
        # The same order in both sums: if every reward is 1, the mean is exactly 1.
        means = [
            round(sum(w * value for w, value in zip(weights, one)) / sum(weights), 12)
            for one in judged
        ]
        least = min([0.0, *means])
        return [mean if one.finished else least for one, mean in zip(group, means)]


def _unique(names: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in count(2))
        found.append(name if name not in found else next(n for n in numbered if n not in found))
    return found
