"""Which items of a task are about one passage. Errors count passages, not such items."""

from __future__ import annotations

from pion.evaluation.core.bundle import Task
from pion.evaluation.core.published import WITH_PASSAGES
from pion.evaluation.core.rows import common_prefix

# A passage is known by so many characters, after those with which all contexts of a task begin.
PASSAGE_CHARS = 100


def passages_of(task: Task, count: int) -> list[str] | None:
    """Return the passage of each of the first `count` items; None if they are independent."""
    if task.label not in WITH_PASSAGES:
        return None
    contexts = [item.contexts[0] for item in task.items]
    start = common_prefix(contexts)
    return [context[start : start + PASSAGE_CHARS] for context in contexts[:count]]
