"""Measure CORE: ask a model the questions of a bundle, task by task, and say what its answers mean.

A standard error (sem) says how much a number would differ with other items of the same kind. It
does not say how much it would differ with another seed of the same training: about 0.006 for CORE.

The record of a task has (shares are from 0 to 1):
- `items`: how many were asked, the first of `of_items`.
- `accuracy`: the share of right answers, and `sem`, its standard error; NaN if the model's
  logits were not finite.
- `baseline`: the accuracy by guessing (v1); `baseline_v2` as DCLM corrected it.
- `centred`: 0 at the baseline, and 1 if all answers are right; `centred_v2` by `baseline_v2`.
- `cropped`: the share of rows that lost their beginning to the model's context.
- `unscored`: items of which the context does not hold the answer. They count as wrong.
- `odd_items`, `joined_tokens`: items scored in another way than by nanochat; see `ItemRows`.
- `ties`: items with several best answers, which share the credit.
- `commonest`: of multiple_choice, the share of items that get the answer at the commonest
  place, `commonest_place` (from 0). Near 1, the model does not read the questions. None if no
  item has a single best answer.
- `passages`: of squad and coqa, the number of passages, which are the sample; otherwise None.
- `not_finite`: items whose logits were not finite.
- `data_digest`: sha256 of the file with the items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.core.bundle import Bundle, Task
from pion.evaluation.core.rows import passages_of
from pion.evaluation.core.scoring import NO_CHOICE, Answer, answer_task
from pion.evaluation.held_out import Scorer
from pion.evaluation.item_scores import Scored, TaskScores, mean_sem
from pion.evaluation.shares import ratio, share_sem

RULE = "core/nanochat-1"
# If more of a task's rows are cropped, the result says so next to its number.
MUCH_CROPPED = 0.1
# Of each task. More costs much time and helps little: copa has 100 items, and half the variance.
DEFAULT_ITEMS = 500
# Examples and questions of most tasks are longer. What is left of them is another benchmark.
SHORTEST_CONTEXT = 256
# The shares of right answers by guessing that DCLM corrected on 5 September 2025: those of before
# (v1), by which nanochat and the published numbers are centred, and those of after (v2).
CORRECTED = {
    "commonsense_qa": (0.01 * 20, 0.01 * 40.3),
    "agi_eval_lsat_ar": (0.01 * 20, 0.01 * 25),
    "bigbench_language_identification": (0.01 * 9.1, 0.01 * 25),
}


def measure_task(
    scorer: Scorer,
    tokenizer: Tokenizer,
    task: Task,
    limit: int | None,
    on_items: Callable[[Task, int, int], None] = lambda *_: None,
) -> Scored:
    """Return how well the scorer's model answers one task, as `task_result`; see `core_result` for
    all of them.

    The first `limit` items are asked, None: all. A smaller measurement asks a random sample of the
    items of a larger one, after the same examples. `on_items` is called now and then with the task,
    and how many items of how many are answered.

    Raises PionError if not even one row fits in the GPU's memory. See `too_short` first.
    """
    count = len(task.items) if limit is None else min(limit, len(task.items))
    answers = answer_task(scorer, tokenizer, task, count, lambda done: on_items(task, done, count))
    return task_result(task, answers)


def too_short(context: int) -> str | None:
    """Return a sentence, without a stop, about a context that is too short for CORE, or None."""
    if context >= SHORTEST_CONTEXT:
        return None
    return (
        f"the model's context has {context} tokens. CORE needs {SHORTEST_CONTEXT} or more, because "
        "most questions are longer, and would lose their beginning"
    )


def task_result(task: Task, answers: Sequence[Answer]) -> Scored:
    """Return what the answers to the task's first items say."""
    item_rows = [answer.asked for answer in answers]
    credits = np.array([answer.credit for answer in answers])
    choices = [answer.choice for answer in answers]
    not_finite = sum(not answer.finite for answer in answers)
    passages = passages_of(task, len(answers))
    accuracy, sem = _accuracy(credits, passages)
    if not_finite:
        accuracy = sem = math.nan
    rows = sum(len(item.options) for item in task.items[: len(answers)])
    v1, v2 = CORRECTED.get(task.label, (task.baseline, task.baseline))
    places = choices if task.task_type == "multiple_choice" else []
    votes = Counter(choice for choice in places if choice != NO_CHOICE).most_common(1)
    record = {
        "label": task.label,
        "task_type": task.task_type,
        "shots": task.shots,
        "items": len(answers),
        "of_items": len(task.items),
        "accuracy": accuracy,
        "sem": sem,
        "baseline": v1,
        "baseline_v2": v2,
        "centred": (accuracy - v1) / (1 - v1),
        "centred_sem": sem / (1 - v1),
        "centred_v2": (accuracy - v2) / (1 - v2),
        "centred_v2_sem": sem / (1 - v2),
        "cropped": sum(answer.cropped for answer in item_rows) / rows,
        "unscored": sum(answer.unscored for answer in item_rows),
        "odd_items": sum(answer.odd for answer in item_rows),
        "joined_tokens": sum(answer.joined for answer in item_rows),
        "ties": sum(answer.tied for answer in answers),
        "commonest": votes[0][1] / len(choices) if votes else None,
        "commonest_place": votes[0][0] if votes else None,
        "passages": None if passages is None else len(set(passages)),
        "not_finite": not_finite,
        "data_digest": task.data_digest,
    }
    return Scored(record, credits)


def core_result(
    bundle: Bundle,
    tasks: Sequence[Scored],
    *,
    limit: int | None,
    context: int,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Return the mean of the centred accuracies of all tasks of a bundle, as a record.

    Its `value` is by the baselines v1, and `value_v2` by v2, each with its standard error. `limit`
    is how many items of each task were asked at most, None: all. `context` is the model's, in
    tokens; `cropped_tasks` lost more than a tenth of their rows' beginnings to it. `dtype` is that
    of the model's products; logits are always fp32. `not_core` says what keeps a bundle from being
    CORE's.
    """
    records = [task.record for task in tasks]
    return {
        "rule": RULE,
        "name": "CORE",
        "not_core": [],
        "value": math.fsum(record["centred"] for record in records) / len(tasks),
        "sem": _mean_sem(tasks, "baseline"),
        "value_v2": math.fsum(record["centred_v2"] for record in records) / len(tasks),
        "sem_v2": _mean_sem(tasks, "baseline_v2"),
        "limit": limit,
        "context": context,
        "dtype": dtype,
        "cropped_tasks": [one["label"] for one in records if one["cropped"] > MUCH_CROPPED],
        "bundle_digest": bundle.digest,
        "tasks": records,
    }


# ---------------------------------------------------------------- errors


def _accuracy(credits: np.ndarray, passages: Sequence[str] | None) -> tuple[float, float]:
    """Return the mean of the credits and its standard error."""
    accuracy = float(credits.mean())
    units = len(credits) if passages is None else len(set(passages))
    if accuracy in (0, 1):
        return accuracy, share_sem(accuracy, units)
    if passages is None or units < 2:
        return accuracy, share_sem(accuracy, len(credits))
    _, passage = np.unique(passages, return_inverse=True)
    return ratio(np.bincount(passage, credits), np.bincount(passage))


def _mean_sem(tasks: Sequence[Scored], baseline: str) -> float:
    """Return the standard error of the mean of the centred accuracies."""
    return mean_sem(
        [
            TaskScores(record["sem"], record[baseline], record["data_digest"], credits)
            for record, credits in tasks
        ]
    )
