"""The items that are looked for, of the questions that a model is asked."""

from __future__ import annotations

from collections.abc import Sequence

from pion.evaluation.core.bundle import Task
from pion.evaluation.core.rows import passages_of
from pion.evaluation.overlap.items import Item
from pion.evaluation.questions import Question


def items_of_task(task: Task) -> list[Item]:
    """Return the items of a task of CORE, each with its right answer."""
    passages = passages_of(task, len(task.items)) or [""] * len(task.items)
    return [
        Item(*item.pair(item.gold), passage)
        for item, passage in zip(task.items, passages, strict=True)
    ]


def items_of_questions(questions: Sequence[Question]) -> list[Item]:
    """Return the items of multiple-choice questions, each with its right answer."""
    return [Item(one.context, one.choices[one.answer]) for one in questions]
