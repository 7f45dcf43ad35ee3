"""An answer that a model has sampled, and what those who judge it may know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answered:
    """An answer to judge.

    Attributes:
        text: what the model said, without special tokens, after what the prompt begins of it.
        prompt: the prompt as it stands in the record: a text, or a list of messages.
        answer: what the record gives as the right answer: a text, or a list, an object or a truth
            value; None: nothing.
        record: the whole record, JSON values by their keys.
        finished: whether the answer has an end. If not, it was cut at `max_tokens`.
        tokens: how many tokens the answer has.
        ids: the tokens that were sampled, with that of the end.
    """

    text: str
    prompt: Any
    answer: Any
    record: dict[str, Any]
    finished: bool
    tokens: int
    ids: Sequence[int] = ()


def right_answers(answer: Any) -> list[str]:
    """Return the texts of which an answer may be any: the right answer, or those in a list. Of an
    object or a truth value there is none."""
    every = answer if isinstance(answer, list) else [answer]
    return [
        str(one)
        for one in every
        if isinstance(one, str | int | float) and not isinstance(one, bool) and str(one).strip()
    ]
