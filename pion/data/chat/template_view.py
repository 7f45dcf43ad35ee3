"""Show a tokenized conversation on a terminal, with the learned tokens marked."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from pion.data.chat.conversation import Tokenized
from pion.data.tokens.tokenizer import Tokenizer

# What is before and after learned text.
LEARNED = ("⟦", "⟧")
# The most tokens that are shown.
MOST_TOKENS = 1000
# What could control a terminal, or change the direction of its text. Newlines and tabs may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def marked_text(tokenizer: Tokenizer, conversation: Tokenized, most: int = MOST_TOKENS) -> str:
    """Return the text of a conversation as the model sees it, special tokens included.

    Learned tokens are between ⟦ and ⟧. At most `most` tokens are shown, and how many follow.
    Control characters become U+FFFD.
    """
    ids, learned = conversation.ids[:most], conversation.learned[:most]
    borders = np.flatnonzero(np.diff(learned)) + 1
    parts = []
    for start, end in pairwise([0, *borders.tolist(), len(ids)]):
        text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _text(tokenizer, ids[start:end]))
        marked = start < end and bool(learned[start])
        parts.append(text.join(LEARNED) if marked else text)
    more = len(conversation.ids) - len(ids)
    return "".join(parts) + (f"\n… ({more:,} more tokens)" if more else "")


def _text(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist(), specials=True)
