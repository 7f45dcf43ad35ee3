"""Conversations as token ids by a model's own chat template, and the exact mask of its answers.

The template is a Jinja program that came with the model. It is rendered as transformers renders it
(`pion.data.chat.template_renderer`), so that training, chatting and other programs see the same
text. The special tokens that it writes become special ids. Texts of a conversation can't write
them: a space is put into what looks like one, as with Pion's own template
(`pion.data.chat.conversation`).

What the model learns of an answer: what follows the generation prompt, up to and including the end
of the turn. A newline after it is not learned. `pion.data.chat.template_mask` finds these ids.

Some templates write a turn differently once others follow: Qwen3 removes what was thought. Then no
single row is right, and each answer becomes a separate example: the conversation that ends with the
answer, of which only this answer is learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.chat.conversation import Tokenized
from pion.data.chat.messages import (
    THOUGHTS,
    Conversation,
    Message,
    answers_in,
    calls_before,
    endless_call,
    forms_of,
    harmless,
    lost_call,
    names_of,
    says_something,
)
from pion.data.chat.template_mask import AnswerFinder, EncodedText
from pion.data.chat.template_renderer import Refused, Rendered, RenderedTurn, Renderer
from pion.data.chat.template_rules import Probe, broken_rule
from pion.data.chat.template_source import find_template, template_date
from pion.data.chat.tool_call_form import PROBE, CallForm, form_of
from pion.data.tokens.special_tokens import read_special_tokens
from pion.data.tokens.token_names import token_names
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.later_fields import shown

# A text that is in no template, to find what a template writes after an answer.
_ANSWER = "PionAsksWhatFollowsThisAnswer"
# A tag, such as `<think>` or `</tool_call>`.
_TAG = re.compile(r"</?\w+>")
# The most answers of a conversation. All turns before an answer are rendered twice for it, so the
# time grows with the square of the answers.
MOST_ANSWERS = 256


@dataclass(frozen=True)
class Examples:
    """What is learned from one conversation.

    Attributes:
        tokenized: one example, or one of each answer; none if the conversation is refused.
        split: whether each answer became a separate example.
        refused: why the conversation can't be learned, with its file and line; None if it can.
        systems: how many system messages a learned conversation has.
        lost_systems: how many of these the template leaves out of the text.
        thoughts: how many learned answers have thoughts before them.
        lost_thoughts: how many of these the template leaves out.
        lost_tools: whether tools, calls of tools or their results are left out.
    """

    tokenized: tuple[Tokenized, ...] = ()
    split: bool = False
    refused: str | None = None
    systems: int = 0
    lost_systems: int = 0
    thoughts: int = 0
    lost_thoughts: int = 0
    lost_tools: bool = False


# What is counted of conversations: the numbers of `Examples`.
COUNTS = ("systems", "lost_systems", "thoughts", "lost_thoughts", "lost_tools")


class ChatTemplate:
    """A model's chat template with its tokenizer. It is for one thread, and `close` ends it.

    Attributes:
        end_of_turn: the special id that the template writes after an answer; None if it writes
            none. A model that is trained with such a template never learns to stop.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer) -> None:
        """Read the template in `folder`.

        Raises:
            BadInput: there is no template, or it can't be used.
        """
        source = find_template(folder)
        if source is None:
            raise BadInput(f"{folder}: this model has no chat template")
        self._source = source
        self._where = str(folder)
        self._tokenizer = tokenizer
        self._marks = marks_of(source, tokenizer)
        self._probed: dict[Probe, bool] = {}
        self._renderer = Renderer(source, token_names(folder), template_date(folder), str(folder))
        try:
            self.end_of_turn: int | None = self._end_of_turn()
            special = read_special_tokens(folder, tokenizer, self.end_of_turn)
            self._stops = [tokenizer.decode([stop], specials=True) for stop in special.stop_ids]
        except BaseException:
            self.close()
            raise
        self._finder = AnswerFinder(tokenizer, self._marks, self.end_of_turn)

    def close(self) -> None:
        """End the process that renders the template."""
        self._renderer.close()

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the ids that the model continues with an answer.

        Raises:
            BadInput: the template refuses the messages, or can't be used.
        """
        not_empty = [message for message in messages if says_something(message)] or messages
        conversation = Conversation(not_empty, tools, "this conversation", options=options or {})
        text = self._prompt(harmless(conversation, self._marks))
        (encoding,) = self._tokenizer.encode_with_specials([text])
        return self._started(encoding.ids)[0]

    @cached_property
    def call_form(self) -> CallForm | None:
        """How the template writes calls of tools; None if it does not, or in no known form."""
        _, rendered = self._rendered(PROBE)
        if isinstance(rendered, str):
            return None
        (turn,) = rendered.turns
        start = turn.prompt[0]
        answer = _joined(rendered.text, turn.turn)[start:]
        return form_of(rendered.text[:start], answer, self._marks, self._stops)

    @property
    def thinks(self) -> bool:
        """Whether the template marks thoughts with `<think>` and `</think>`."""
        return "</think>" in self._source

    def reads(self, name: str) -> bool:
        """Return whether the template may read a variable of this name."""
        return re.search(rf"\b{re.escape(name)}\b", self._source) is not None

    def tokenize_batch(self, conversations: Iterable[Conversation]) -> list[Examples]:
        """Return what is learned from each conversation; refused ones say why.

        Raises:
            BadInput: the template can't be used at all: it has wrong syntax, needs more than a
                gigabyte, or takes too long.
        """
        conversations_list = list(conversations)
        return [
            example
            if example.refused is None
            else replace(example, refused=self._explained(conversation, example.refused))
            for conversation, example in zip(
                conversations_list, self._tokenized(conversations_list), strict=True
            )
        ]

    def _explained(self, conversation: Conversation, refused: str) -> str:
        """Return which rule a refused conversation breaks; `refused` itself if none is known."""
        rule = broken_rule(conversation.messages, self._refuses)
        refusal = f"{conversation.where}: the chat template refuses this conversation: {rule}"
        return refused if rule is None else refusal

    def _refuses(self, probe: Probe) -> bool:
        """Return whether a conversation of messages by these roles is refused."""
        if probe not in self._probed:
            messages = [{"role": role, "content": "Hello"} for role in probe]
            (example,) = self._tokenized([Conversation(messages, None, "a few messages")])
            self._probed[probe] = example.refused is not None
        return self._probed[probe]

    def _tokenized(self, conversations: Sequence[Conversation]) -> list[Examples]:
        rendered = [self._rendered(conversation) for conversation in conversations]
        wholes = [
            rendered_text for _, rendered_text in rendered if isinstance(rendered_text, Rendered)
        ]
        prompts = [
            [t.prompt[0] for t in rendered_text.turns if not t.prompt[1]]
            for rendered_text in wholes
        ]
        encoded = iter(
            self._finder.encode([rendered_text.text for rendered_text in wholes], prompts)
        )
        return [
            Examples(refused=rendered_text)
            if isinstance(rendered_text, str)
            else self._examples(conversation, rendered_text, next(encoded))
            for conversation, rendered_text in rendered
        ]

    def _rendered(self, conversation: Conversation) -> tuple[Conversation, Rendered | str]:
        conversation = harmless(conversation, self._marks)
        answers = answers_in(conversation)
        if len(answers) > MOST_ANSWERS:
            return conversation, (
                f"{conversation.where}: the conversation has {len(answers):,} answers; a chat "
                f"template is used for at most {MOST_ANSWERS}"
            )
        before = calls_before(conversation, answers)
        refusals: list[str] = []
        for form in forms_of(conversation):
            try:
                rendered = self._renderer.conversation(form, [*before, *answers])
            except Refused as error:
                refusals.append(_refusal(conversation, error))
                continue
            texts = [_joined(rendered.text, t.turn)[t.prompt[0] :] for t in rendered.turns]
            if (lost := lost_call(form, [*before, *answers], texts)) is None:
                return form, replace(rendered, turns=rendered.turns[len(before) :])
            refusals.insert(0, lost)  # it says more than a template's own error
        return conversation, refusals[0]

    def _prompt(self, conversation: Conversation) -> str:
        refusals: list[str] = []
        for form in forms_of(conversation):
            try:
                text = self._renderer.text(form, prompt=True)
            except Refused as error:
                refusals.append(_refusal(conversation, error))
                continue
            answers = answers_in(form)
            if (lost := lost_call(form, answers, [text] * len(answers))) is None:
                return text
            refusals.insert(0, lost)
        raise BadInput(refusals[0])

    def _examples(
        self, conversation: Conversation, rendered: Rendered, encoded_text: EncodedText
    ) -> Examples:
        spans = [self._finder.span(encoded_text, turn) for turn in rendered.turns]
        answers = [span for span in spans if span is not None]
        counts = _counts(conversation, rendered)
        if len(answers) == len(spans):
            if endless := self._endless(
                conversation, [encoded_text.ids[end - 1] for _, end in answers]
            ):
                return Examples(refused=endless)
            return Examples((self._masked(encoded_text, answers),), **counts)
        texts = [_joined(rendered.text, turn.turn) for turn in rendered.turns]
        prompts = [_joined(rendered.text, turn.prompt) for turn in rendered.turns]
        examples, ends = [], []
        encoded = self._finder.encode(texts, [[len(prompt)] for prompt in prompts])
        for number, (prompt, text) in enumerate(zip(prompts, encoded, strict=True), 1):
            alone = RenderedTurn((len(prompt), ""), (len(text.text), ""))
            span = self._finder.span(text, alone) if text.text.startswith(prompt) else None
            if span is None:
                return Examples(
                    refused=f"{conversation.where}: answer {number}: the chat template's "
                    "generation prompt does not begin what the template writes for this answer, so "
                    "Pion can't tell what to learn. If the template has an option for this (such "
                    "as enable_thinking), set the option"
                )
            ends.append(text.ids[span[1] - 1])
            if endless := self._endless(conversation, ends):
                return Examples(refused=endless)
            examples.append(self._masked(text, [span]))
        return Examples(tuple(examples), split=True, **counts)

    def _endless(self, conversation: Conversation, ends: Sequence[int]) -> str | None:
        """Return why a conversation is refused whose answers end with these ids, if it is."""
        calls = any(message.get("tool_calls") for message in conversation.messages)
        if self.end_of_turn is None or not calls:  # without an end, no answer has one
            return None
        texts = [self._tokenizer.decode([end], specials=True) for end in ends]
        return endless_call(conversation, texts, self._stops)

    def _masked(self, text: EncodedText, spans: Sequence[tuple[int, int]]) -> Tokenized:
        started, added = self._started(text.ids)
        learned = np.zeros(len(started), np.bool_)
        for start, end in spans:
            learned[start + added : end + added] = True
        return Tokenized(np.array(started, np.int32), learned)

    def _started(self, ids: Sequence[int]) -> tuple[list[int], int]:
        """Return the ids after the tokenizer's first token, and how many were added: 0 or 1."""
        first = self._tokenizer.first
        if first is None or (ids and ids[0] == first):
            return list(ids), 0
        return [first, *ids], 1

    def _end_of_turn(self) -> int | None:
        """Return the first special id that the template writes after an answer."""
        messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
        conversation = harmless(
            Conversation(messages, None, "a question and an answer"), self._marks
        )
        try:
            text = self._renderer.text(conversation, prompt=False)
        except Refused as error:
            raise BadInput(f"{self._where}: {_refusal(conversation, error)}") from None
        _, answer, after = text.rpartition(_ANSWER)
        if not answer:
            raise BadInput(f"{self._where}: this chat template does not write the assistant's text")
        (encoding,) = self._tokenizer.encode_with_specials([after])
        return next((token for token in encoding.ids if token in self._marks.values()), None)


def marks_of(source: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the tokens that a text may not write, by their texts: those that make turns.

    They are all special tokens, and of the other added tokens those that the template names:
    DeepSeek's `<｜User｜>` is not special. Tags stay, because answers may have them (`<think>`).
    So do Gemma's runs of newlines.
    """
    named = {
        text: number
        for text, number in tokenizer.plain_added.items()
        if text in source and text.strip() and not _TAG.fullmatch(text)
    }
    return tokenizer.special_ids | named


def _counts(conversation: Conversation, rendered: Rendered) -> dict[str, Any]:
    """Return what `Examples` counts of a conversation."""
    written = _words(rendered.text)
    system_texts = (m["content"] or "" for m in conversation.messages if m["role"] == "system")
    systems = [_words(text) not in written for text in system_texts]
    thoughts = [
        _words(thought) not in _words(_joined(rendered.text, turn.turn)[turn.prompt[0] :])
        for turn, answer in zip(rendered.turns, answers_in(conversation), strict=True)
        if (thought := conversation.messages[answer].get(THOUGHTS))
    ]
    return {
        "systems": len(systems),
        "lost_systems": sum(systems),
        "thoughts": len(thoughts),
        "lost_thoughts": sum(thoughts),
        "lost_tools": any(name not in rendered.text for name in names_of(conversation.tools)),
    }


def _words(text: str) -> str:
    """Return a text with one space for each run of spaces and newlines."""
    return " ".join(text.split())


def _joined(text: str, compared: tuple[int, str]) -> str:
    """Return a text that the renderer compared with the whole one."""
    shared, rest = compared
    return text[:shared] + rest


def _refusal(conversation: Conversation, error: Refused) -> str:
    return (
        f"{conversation.where}: the chat template refuses this conversation ({shown(str(error))})"
    )
