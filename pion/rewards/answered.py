"""An answer that a model has sampled, and what those who judge it may know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answered:
    """An answer to judge.

    Attributes:
        text: what the model said, without special tokens.
        prompt: the prompt as it stands in the record: a text, or a list of messages.
        answer: what the record gives as the right answer; None: nothing.
        record: the whole record, JSON values by their keys.
        finished: whether the answer has an end. If not, it was cut at `max_tokens`.
        tokens: how many tokens the answer has.
    """

    text: str
    prompt: Any
    answer: str | None
    record: dict[str, Any]
    finished: bool
    tokens: int
