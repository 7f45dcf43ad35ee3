"""Prompts as ids, and as rows: one prompt in each, of which nothing is learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.rendering import surely_longer
from pion.data.prompt.layouts import Question
from pion.data.row_flags import PADDING, STARTS
from pion.errors import BadInput
from pion.untrusted import parse_json

# A prompt, or why a record can't be used; whether that ends everything; and whether the prompt is
# held out (None: its ids decide).
Asked = tuple[Question | str, bool, bool | None]


@dataclass
class EncodedPrompts:
    """Prompts as ids, written as a server of the model does.

    Attributes:
        written: the chat format.
        longest: the most ids of a prompt.
        longest_token: bytes of the longest token.
        is_held_out: says whether a prompt with these ids, int32 ``(n,)``, is held out.
        kept: by whether they are held out, the ids of each prompt and a line of JSON with what
            rewards get of the prompt: its `prompt`, `answer` and `record`, and what has `begun`.
        refusals: why records can't be used.
        too_long: how many prompts have more ids than `longest`, and are left out.
        unanswered: how many prompts have no answer.
    """

    written: ChatFormat
    longest: int
    longest_token: int
    is_held_out: Callable[[np.ndarray], bool]
    kept: dict[bool, list[tuple[np.ndarray, bytes]]] = field(
        default_factory=lambda: {False: [], True: []}
    )
    refusals: list[str] = field(default_factory=list)
    too_long: int = 0
    unanswered: int = 0

    @property
    def read(self) -> int:
        """How many records there were so far."""
        return sum(map(len, self.kept.values())) + len(self.refusals) + self.too_long

    def add(self, asked: Iterable[Asked]) -> int:
        """Add records; return how many there are now.

        Raises BadInput for a record that must be usable and is not.
        """
        for question, required, held_out in asked:
            try:
                if isinstance(question, str):
                    raise BadInput(question)
                ids, line = self.ids(question), _line(question)
            except BadInput as error:
                if required:
                    raise BadInput(
                        f"{error}. Nothing was trained. Correct or remove this prompt"
                    ) from None
                self.refusals.append(str(error))
                continue
            if ids is None:
                self.too_long += 1
                continue
            out = self.is_held_out(ids) if held_out is None else held_out
            self.kept[out].append((ids, line))
            self.unanswered += question.answer is None
        return self.read

    def ids(self, question: Question) -> np.ndarray | None:
        """Return the ids of a prompt, int32 ``(n,)``; None if they are too many.

        Raises BadInput, naming file and line, if the chat format can't write the prompt.
        """
        conversation = question.conversation
        if conversation.tools and self.written.call_form is None:
            raise BadInput(
                f"{conversation.where}: this model's chat template has no place for tools"
            )
        if surely_longer(conversation, self.longest, self.longest_token):
            return None
        try:
            ids = prompt_ids(self.written, question)
        except BadInput as error:
            why = str(error).removeprefix("this conversation: ")
            raise BadInput(f"{conversation.where}: {why}") from None
        return np.array(ids, np.int32) if len(ids) <= self.longest else None


def prompt_ids(written: ChatFormat, question: Question) -> list[int]:
    """Return the ids that the model continues. Raises BadInput as `written` does."""
    conversation = question.conversation
    ids = written.prompt_ids(conversation.messages, conversation.tools)
    return ids + (written.tokenizer.encode_further(question.begun) if question.begun else [])


def _line(question: Question) -> bytes:
    """Return what rewards get. Raises BadInput for a record that could not be read again."""
    fields = {"prompt": question.prompt, "answer": question.answer, "record": question.record}
    fields |= {"begun": question.begun} if question.begun else {}
    line = json.dumps(fields, ensure_ascii=False, default=str)
    parse_json(line, question.conversation.where, strict=False)
    return f"{line}\n".encode()


def rows_of(prompts: Sequence[np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a row of `length` ids for each prompt, int32 ``(n, length)``, and their flags.

    Unused tails are filled with ``pad``. The flags are uint8 of the same shape.
    """
    ids = np.full((len(prompts), length), pad, np.int32)
    flags = np.full(ids.shape, PADDING, np.uint8)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        flags[row, : len(prompt)] = 0
    flags[:, 0] = STARTS
    return ids, flags
