"""What CORE says of a model: accuracies by task, their mean, and the standard errors of both.

A standard error (sem) says how much a number would differ with other items of the same kind. It
does not say how much it would differ with another seed of the same training: about 0.006 for CORE.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pion.evaluation.core.bundle import Bundle, Task
from pion.evaluation.core.mean import Scored, mean_sem
from pion.evaluation.core.passages import passages_of
from pion.evaluation.core.published import CORE_TASKS, TaskType
from pion.evaluation.core.scoring import NO_CHOICE, Answered
from pion.evaluation.shares import ratio, share_sem

RULE = "core/nanochat-1"
# If more of a task's rows are cropped, the result says so next to its number.
MUCH_CROPPED = 0.1

Baselines = Literal["v1", "v2"]


@dataclass(frozen=True)
class TaskResult:
    """How well a model answers a task. Shares and accuracies are from 0 to 1.

    Attributes:
        items: how many items were asked, the first of `of_items`.
        accuracy: the share of right answers; NaN if the model's logits were not finite.
        baseline: the accuracy by guessing (v1); `baseline_v2` as DCLM corrected it.
        centred: 0 at the baseline, and 1 if all answers are right; `centred_v2` by `baseline_v2`.
        cropped: the share of rows that lost their beginning to the model's context.
        unscored: items of which the context does not hold the answer. They count as wrong.
        odd_items, joined_tokens: items scored in another way than by nanochat; see `Asked`.
        ties: items with several best answers, which share the credit.
        commonest: of multiple_choice, the share of items that get the answer at the commonest
            place, `commonest_place` (from 0). Near 1, the model does not read the questions. None
            if no item has a single best answer.
        passages: of squad and coqa, the number of passages, which are the sample; otherwise None.
        not_finite: items whose logits were not finite.
        data_digest: sha256 of the file with the items.
        credits, choices: of each item, in its order; see `Answer`.
    """

    label: str
    task_type: TaskType
    shots: int
    items: int
    of_items: int
    accuracy: float
    sem: float
    baseline: float
    baseline_v2: float
    centred: float
    centred_sem: float
    centred_v2: float
    centred_v2_sem: float
    cropped: float
    unscored: int
    odd_items: int
    joined_tokens: int
    ties: int
    commonest: float | None
    commonest_place: int | None
    passages: int | None
    not_finite: int
    data_digest: str
    credits: tuple[float, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Conditions:
    """How CORE was measured: see the fields of `CoreResult`."""

    limit: int | None
    context: int
    dtype: str = "float32"


@dataclass(frozen=True)
class CoreResult:
    """The mean of the centred accuracies of all tasks of a bundle.

    Attributes:
        name: `CORE`, or `mean of k tasks` if the bundle is not CORE's.
        not_core: what keeps the bundle from being CORE's; () if it is.
        value: the mean with baselines v1, `sem` its standard error; both with baselines v2 too.
        limit: how many items of each task were asked at most; None: all.
        context: the model's, in tokens. `cropped_tasks` lost more than a tenth of their rows'
            beginnings to it.
        dtype: of the model's products, such as `float32`. Logits are always fp32.
        bundle_digest: sha256 of the bundle's files.
    """

    rule: str
    name: str
    not_core: tuple[str, ...]
    value: float
    sem: float
    value_v2: float
    sem_v2: float
    limit: int | None
    context: int
    dtype: str
    cropped_tasks: tuple[str, ...]
    bundle_digest: str
    tasks: tuple[TaskResult, ...]


def task_result(task: Task, answers: Sequence[Answered]) -> TaskResult:
    """Return what the answers to the task's first items say."""
    asked = [one.asked for one in answers]
    credits = np.array([one.answer.credit for one in answers])
    choices = [one.answer.choice for one in answers]
    not_finite = sum(not one.answer.finite for one in answers)
    passages = passages_of(task, len(answers))
    accuracy, sem = _accuracy(credits, passages)
    if not_finite:
        accuracy = sem = math.nan
    v1, v2 = baselines_of(task)
    places = choices if task.task_type == "multiple_choice" else []
    votes = Counter(choice for choice in places if choice != NO_CHOICE).most_common(1)
    return TaskResult(
        label=task.label,
        task_type=task.task_type,
        shots=task.shots,
        items=len(answers),
        of_items=len(task.items),
        accuracy=accuracy,
        sem=sem,
        baseline=v1,
        baseline_v2=v2,
        centred=(accuracy - v1) / (1 - v1),
        centred_sem=sem / (1 - v1),
        centred_v2=(accuracy - v2) / (1 - v2),
        centred_v2_sem=sem / (1 - v2),
        cropped=sum(one.cropped for one in asked) / _rows(task, len(answers)),
        unscored=sum(one.unscored for one in asked),
        odd_items=sum(one.odd for one in asked),
        joined_tokens=sum(one.joined for one in asked),
        ties=sum(one.answer.tied for one in answers),
        commonest=votes[0][1] / len(choices) if votes else None,
        commonest_place=votes[0][0] if votes else None,
        passages=None if passages is None else len(set(passages)),
        not_finite=not_finite,
        data_digest=task.data_digest,
        credits=tuple(credits.tolist()),
        choices=tuple(choices),
    )


def core_result(bundle: Bundle, tasks: Sequence[TaskResult], conditions: Conditions) -> CoreResult:
    """Return the mean of the results of all tasks of a bundle."""
    not_core = tuple(_differences(bundle))
    return CoreResult(
        rule=RULE,
        name=f"mean of {len(tasks)} task{'s' * (len(tasks) > 1)}" if not_core else "CORE",
        not_core=not_core,
        value=math.fsum(one.centred for one in tasks) / len(tasks),
        sem=_mean_sem(tasks, "v1"),
        value_v2=math.fsum(one.centred_v2 for one in tasks) / len(tasks),
        sem_v2=_mean_sem(tasks, "v2"),
        limit=conditions.limit,
        context=conditions.context,
        dtype=conditions.dtype,
        cropped_tasks=tuple(one.label for one in tasks if one.cropped > MUCH_CROPPED),
        bundle_digest=bundle.digest,
        tasks=tuple(tasks),
    )


def baselines_of(task: Task) -> tuple[float, float]:
    """Return a task's baselines v1 and v2: of CORE's tasks the published ones, if the bundle has
    one of these two, and otherwise the bundle's own."""
    published = CORE_TASKS.get(task.label)
    if published is None or not _is_one_of(task.baseline, published.v1, published.v2):
        return task.baseline, task.baseline
    return 0.01 * published.v1, 0.01 * published.v2


def _is_one_of(baseline: float, *percents: float) -> bool:
    return any(math.isclose(baseline, 0.01 * percent, abs_tol=1e-9) for percent in percents)


def _differences(bundle: Bundle) -> list[str]:
    """Return what differs between the bundle's tasks and CORE's."""
    found = []
    by_label = {task.label: task for task in bundle.tasks}
    missing, more = CORE_TASKS.keys() - by_label.keys(), by_label.keys() - CORE_TASKS.keys()
    if missing:
        found.append(f"{len(missing)} of CORE's {len(CORE_TASKS)} tasks are missing")
    if more:
        found.append(f"{len(more)} tasks are not CORE's, such as {min(more)}")
    for label, published in CORE_TASKS.items():
        task = by_label.get(label)
        if task is None:
            continue
        if (task.task_type, task.shots) != (published.task_type, published.shots):
            found.append(
                f"{label} is {task.task_type} with {task.shots} examples, and CORE's is "
                f"{published.task_type} with {published.shots}"
            )
        if not _is_one_of(task.baseline, published.v1, published.v2):
            found.append(
                f"{label} has the baseline {100 * task.baseline:.4g} %, and CORE's is "
                f"{published.v1:g} % (v1) or {published.v2:g} % (v2)"
            )
    return found


def _rows(task: Task, count: int) -> int:
    return sum(item.options for item in task.items[:count])


# ---------------------------------------------------------------- errors


def _accuracy(credits: np.ndarray, passages: Sequence[str] | None) -> tuple[float, float]:
    """Return the mean of the credits and its standard error."""
    accuracy = float(credits.mean())
    units = len(credits) if passages is None else len(set(passages))
    if accuracy in (0, 1):
        return accuracy, share_sem(accuracy, units)
    if passages is None or units < 2:
        return accuracy, share_sem(accuracy, len(credits))
    _, place = np.unique(passages, return_inverse=True)
    return ratio(np.bincount(place, credits), np.bincount(place))


def _mean_sem(tasks: Sequence[TaskResult], baselines: Baselines) -> float:
    """Return the standard error of the mean of the centred accuracies."""
    return mean_sem(
        [
            Scored(one.sem, one.baseline if baselines == "v1" else one.baseline_v2, one.data_digest)
            for one in tasks
        ],
        [one.credits for one in tasks],
    )
