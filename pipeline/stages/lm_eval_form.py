"""Compare the ids that lm-eval sends to a model with those in the form that the model learned.

lm-eval renders and encodes its prompts with transformers, Pion with its own code. A first token
that is missing or there twice, or another chat template, would give scores that mislead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.messages import Message
from pion.errors import BadInput

# How many ids before the first difference are shown, and how many from there on.
BEFORE, FROM = 8, 6


@dataclass(frozen=True)
class Form:
    """The ids of a prompt in the form that the model learned.

    Attributes:
        ids: the whole prompt, or its beginning.
        whole: whether nothing may follow.
        by: "chat" or "text".
    """

    ids: list[int]
    whole: bool
    by: str


def chat_form(talks: ChatFormat, messages: Sequence[Message]) -> Form:
    """Return the form in which the model learned to be asked `messages`.

    The text of an assistant at the end is the beginning of the answer: it is not in the ids.
    Raises BadInput if the chat template refuses the messages, or can't be used.
    """
    begun = bool(messages) and messages[-1]["role"] == "assistant"
    return Form(talks.prompt_ids(messages[:-1] if begun else messages), not begun, "chat")


def text_form(talks: ChatFormat, text: str) -> Form:
    """Return the form of a plain text as in training: after the first token, if there is one."""
    return Form(talks.tokenizer.start_document(talks.tokenizer.encode(text)), True, "text")


def require_form(talks: ChatFormat, sent: Sequence[int], learned: Form) -> None:
    """Raise BadInput, with both beginnings, unless the ids `sent` are those of the form."""
    ids = learned.ids
    compared = sent if learned.whole else sent[: len(ids)]
    if list(compared) == ids:
        return
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(sent, ids, strict=False))))
    where = "begins" if same <= BEFORE else f"continues after {same - BEFORE} equal tokens"
    raise BadInput(
        f"lm-eval would ask the model in another form than it learned. Its prompt ({learned.by}) "
        f"{where} with {_shown(talks, sent, same)}; the model learned {_shown(talks, ids, same)}. "
        "The model is safe, and no score was computed. Look at the chat template, the first token "
        "and the tokenizer_class of the tokenizer_config.json, or set evaluate.lm_eval.chat"
    )


def _shown(talks: ChatFormat, ids: Sequence[int], same: int) -> str:
    """Return the ids around the first difference, and their text."""
    part = list(ids[max(0, same - BEFORE) : same + FROM])
    if not part:
        return "nothing"
    return f"{' '.join(map(str, part))} ({talks.tokenizer.decode(part, specials=True)!r})"
