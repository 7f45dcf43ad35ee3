"""The texts that a model reads: a question after answered questions, by nanochat's rules.

These texts are part of the rule `core/nanochat-1`: another space makes another benchmark.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pion.evaluation.core.bundle import Task
from pion.evaluation.core.items import Item

SHOTS_SEED = 1234
AFTER_EXAMPLE = "\n\n"


@dataclass(frozen=True)
class Prompts:
    """What is asked of one item.

    Attributes:
        whole: for each option, the text with the option's answer at its end.
        before: the text before the answer. Of schema, there is one for each option, but none is
            needed, and this is "".
    """

    whole: tuple[str, ...]
    before: str


def draw_examples(items: int, number: int, shots: int) -> list[int]:
    """Return the numbers of the examples for item `number` of `items`, in their order."""
    # The same draw as from the list of all numbers but this one, without making that list.
    drawn = random.Random(SHOTS_SEED + number).sample(range(items - 1), shots)
    return [other + (other >= number) for other in drawn]


def prompts_of(task: Task, number: int) -> Prompts:
    """Return the texts of the task's item `number`."""
    item = task.items[number]
    drawn = draw_examples(len(task.items), number, task.shots)
    examples = "".join(_answered(task, task.items[i]) + AFTER_EXAMPLE for i in drawn)
    whole = tuple(examples + _pair(task, item, option) for option in range(item.options))
    if task.task_type == "schema":
        return Prompts(whole, "")
    context, _ = item.pair(0)
    before = examples + _context(task, context) + task.delimiter
    if task.task_type == "language_modeling":
        # Otherwise, the space before the answer would be a token that the whole text does not have.
        before = before.rstrip()
    return Prompts(whole, before)


def _answered(task: Task, item: Item) -> str:
    return _pair(task, item, item.gold)


def _pair(task: Task, item: Item, option: int) -> str:
    context, continuation = item.pair(option)
    return _context(task, context) + task.delimiter + continuation


def _context(task: Task, context: str) -> str:
    """Return a context as it is shown: only those of language_modeling lose their white space."""
    return context.strip() if task.task_type == "language_modeling" else context
