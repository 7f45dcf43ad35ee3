"""What is looked for: the items of evaluation sets, and the words of an item that count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pion.data.overlap.words import split_words

# Only the last words of an item count: a passage before the question is public text, and often in
# the training data without any leak.
LAST_WORDS = 40
# An item with fewer words can't be judged.
LEAST_WORDS = 8


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its right answer.

    Attributes:
        passage: what several items share, such as the name of their passage. Items with the same
            passage are not independent, so errors count passages. "" if the item stands alone.
    """

    question: str
    answer: str
    passage: str = ""


@dataclass(frozen=True)
class ItemSet:
    """The items of one evaluation set, and the excerpts of held-out text to compare them with.

    `control` is cut from held-out text. Without one, no verdict is possible.
    """

    name: str
    items: Sequence[Item]
    control: Sequence[Item] = ()

    @property
    def digest(self) -> str:
        """The sha256 of the texts of all items, in their order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps([item.question, item.answer, item.passage]).encode() + b"\n")
        return digest.hexdigest()


def counted_words(item: Item) -> tuple[list[bytes], int]:
    """Return the last words of question and answer, and how many of these are the answer's."""
    answer = split_words(item.answer.encode(errors="replace"))[-LAST_WORDS:]
    question = split_words(item.question.encode(errors="replace"))
    return [*question, *answer][-LAST_WORDS:], len(answer)
