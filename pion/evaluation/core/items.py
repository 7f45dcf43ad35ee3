"""The questions of a task, from the lines of a JSON Lines file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pion.data.documents.file_to_documents import whole_characters
from pion.evaluation.results import TaskType
from pion.later_fields import shown

MOST_OPTIONS = 100


@dataclass(frozen=True)
class Item:
    """A question: some `contexts` and `continuations`, of which the pair `gold` is right.

    multiple_choice has one context, and a continuation for each choice. schema has several
    contexts, and one continuation. language_modeling has one of each.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int

    @property
    def options(self) -> int:
        """The number of answers to choose from; 1 in language_modeling."""
        return max(len(self.contexts), len(self.continuations))

    def pair(self, option: int) -> tuple[str, str]:
        """Return the context and the continuation of an option."""
        return (
            self.contexts[option if len(self.contexts) > 1 else 0],
            self.continuations[option if len(self.continuations) > 1 else 0],
        )


def item_of(raw: Any, task_type: TaskType) -> Item:
    """Return the item of a line of JSON. Raises ValueError that says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError(f"found a {type(raw).__name__} instead of a JSON object")
    if task_type == "multiple_choice":
        choices = _texts(raw, "choices")
        return Item((_text(raw, "query"),), choices, _gold(raw, len(choices)))
    continuation = _text(raw, "continuation")
    if not continuation.strip():
        raise ValueError("continuation is empty")
    if task_type == "schema":
        contexts = _texts(raw, "context_options")
        return Item(contexts, (continuation,), _gold(raw, len(contexts)))
    return Item((_text(raw, "context"),), (continuation,), 0)


def _value(raw: dict[str, Any], key: str) -> Any:
    if key not in raw:
        raise ValueError(f"no {key!r}; its keys: {shown(', '.join(raw)) if raw else 'none'}")
    return raw[key]


def _text(raw: dict[str, Any], key: str) -> str:
    value = _value(raw, key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {shown(value)}; expected text")
    return whole_characters(value)


def _texts(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    values = _value(raw, key)
    if not isinstance(values, list) or not 2 <= len(values) <= MOST_OPTIONS:
        raise ValueError(f"{key} is {shown(values)}; expected 2 to {MOST_OPTIONS} texts in a list")
    wrong = next((value for value in values if not isinstance(value, str)), None)
    if wrong is not None or None in values:
        raise ValueError(f"{key} has {shown(wrong)} in it; expected texts")
    return tuple(map(whole_characters, values))


def _gold(raw: dict[str, Any], options: int) -> int:
    gold = _value(raw, "gold")
    if type(gold) is not int or not 0 <= gold < options:
        raise ValueError(f"gold is {shown(gold)}; expected a whole number from 0 to {options - 1}")
    return gold
