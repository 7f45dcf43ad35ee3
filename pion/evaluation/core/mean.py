"""The standard error of a mean over tasks, of which some ask the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Scored:
    """The error of a task's mean score (or of a difference), and what decides how it counts.

    `questions` is the digest of the task's questions.
    """

    sem: float
    baseline: float
    questions: str


def mean_sem(tasks: Sequence[Scored], scores: Sequence[Sequence[float] | np.ndarray]) -> float:
    """Return the standard error of the mean of centred scores over tasks.

    `scores` has those of each task's single items.
    """
    slopes = [1 / (1 - task.baseline) for task in tasks]
    variance = math.fsum((slope * task.sem) ** 2 for slope, task in zip(slopes, tasks))
    for a, b in combinations(range(len(tasks)), 2):
        # Tasks that ask the same items in another way, as hellaswag with and without examples.
        count = len(scores[a])
        if tasks[a].questions == tasks[b].questions and count == len(scores[b]) and count > 1:
            shared = float(np.cov(scores[a], scores[b])[0, 1]) / count
            variance += 2 * slopes[a] * slopes[b] * shared
    return math.sqrt(max(variance, 0.0)) / len(tasks)
