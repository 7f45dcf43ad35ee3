"""A preference as the model sees it, for a person who looks before money is spent."""

from __future__ import annotations

from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.preference.rendering import Usable
from pion.data.tokens.tokenizer import Tokenizer


def marked_preference(tokenizer: Tokenizer, usable: Usable, most: int = 1000) -> list[str]:
    """Return the prompt once, then each answer after it, special tokens included.

    Learned tokens are between ⟦ and ⟧. Of each part, at most `most` tokens are shown.
    """
    n = len(usable.prompt)
    names = {True: "chosen", False: "rejected"} if len(usable.item) == 2 else _LABELS
    first = usable.item[0].sequence
    parts = [f"prompt: {marked_text(tokenizer, _part(first, 0, n), most)}"]
    for sequence, preferred in usable.item:
        answer = _part(sequence, n, len(sequence.ids))
        parts.append(f"{names[preferred]}: {marked_text(tokenizer, answer, most)}")
    return parts


_LABELS = {True: "desired", False: "undesired"}


def _part(sequence: Tokenized, start: int, end: int) -> Tokenized:
    return Tokenized(sequence.ids[start:end], sequence.learned[start:end])
