"""Measure CORE: ask a model the questions of a bundle, task by task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluation.core.bundle import Bundle, Task
from pion.evaluation.core.result import Conditions, CoreResult, TaskResult, core_result, task_result
from pion.evaluation.core.scoring import answer_task
from pion.evaluation.held_out import Scorer

# Of each task. More costs much time and helps little: copa has 100 items, and half the variance.
DEFAULT_ITEMS = 500
# Examples and questions of most tasks are longer. What is left of them is another benchmark.
SHORTEST_CONTEXT = 256


@dataclass(frozen=True)
class Watcher:
    """What is called while CORE is measured: after some items, and after each task."""

    on_items: Callable[[Task, int, int], None] = lambda *_: None  # task, done, all
    on_task: Callable[[TaskResult], None] = lambda _: None


UNWATCHED = Watcher()


def measure_core(
    scorer: Scorer,
    tokenizer: Tokenizer,
    bundle: Bundle,
    limit: int | None = DEFAULT_ITEMS,
    watcher: Watcher = UNWATCHED,
) -> CoreResult:
    """Return the CORE of the scorer's model.

    The first `limit` items of each task are asked, None: all. A smaller measurement asks a random
    sample of the items of a larger one, after the same examples.

    Raises PionError if not even one row fits in the GPU's memory. See `check_context` first.
    """
    results = []
    for task in bundle.tasks:
        results.append(measure_task(scorer, tokenizer, task, limit, watcher))
        watcher.on_task(results[-1])
    dtype = str(scorer.dtype).removeprefix("torch.")
    conditions = Conditions(limit, scorer.model.config.seq_len, dtype)
    return core_result(bundle, results, conditions)


def measure_task(
    scorer: Scorer, tokenizer: Tokenizer, task: Task, limit: int | None, watcher: Watcher
) -> TaskResult:
    """Return how well the scorer's model answers one task; see `measure_core`."""
    count = len(task.items) if limit is None else min(limit, len(task.items))

    def on_items(done: int) -> None:
        watcher.on_items(task, done, count)

    return task_result(task, answer_task(scorer, tokenizer, task, count, on_items))


def check_context(context: int, *, cropped: bool = False) -> None:
    """Raise BadInput for a context that is too short for CORE, unless `cropped` allows it."""
    if context < SHORTEST_CONTEXT and not cropped:
        raise BadInput(
            f"the model's context has {context} tokens. CORE needs {SHORTEST_CONTEXT} or more, "
            "because most questions are longer, and would lose their beginning"
        )
