"""How a model talks: the ids of a prompt in its chat format, and the ids at which it stops.

The files next to its tokenizer.json decide: a chat template of others is rendered
(`pion.data.chat.template`); without one, or with the one that Pion writes, it is Pion's own format
(`pion.data.chat.conversation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pion.data.chat.conversation import (
    ROLES,
    Tokenized,
    Turn,
    chat_template,
    tokenize,
    tokenize_batch,
)
from pion.data.chat.messages import (
    THOUGHTS,
    Conversation,
    Message,
    answers_in,
    has_tools,
    turns_of,
)
from pion.data.chat.template import ChatTemplate, Examples
from pion.data.chat.template_source import RESERVED, find_template
from pion.data.chat.tool_call_form import CallForm
from pion.data.tokens.special_tokens import SpecialTokens, read_special_tokens
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.later_fields import shown


class ChatFormat:
    """The chat format of one model. It is for one thread.

    A template of others is rendered in another process. That starts at the first use, and `close`
    ends it.

    Attributes:
        tokenizer: the model's.
        own: whether this is Pion's own format.
    """

    def __init__(self, tokenizer_file: str | Path, tokenizer: Tokenizer) -> None:
        """Find out which format the model with this tokenizer.json has.

        Raises BadInput for damaged files.
        """
        self.tokenizer = tokenizer
        self._folder = Path(tokenizer_file).parent
        self.own = find_template(self._folder) in (None, chat_template(tokenizer))

    @cached_property
    def template(self) -> ChatTemplate:
        """The template of others. Raises BadInput if there is none, or if it can't be used."""
        return ChatTemplate(self._folder, self.tokenizer)

    @cached_property
    def end_of_turn(self) -> int:
        """The id that ends an answer. Raises BadInput if the template can't be used."""
        end = None if self.own else self.template.end_of_turn
        return self.tokenizer.end_of_text if end is None else end

    @cached_property
    def special(self) -> SpecialTokens:
        """All special ids. Raises BadInput for damaged files."""
        return read_special_tokens(self._folder, self.tokenizer, self.end_of_turn)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which a generated text ends. Raises BadInput for damaged files."""
        return self.special.stop_ids

    @property
    def call_form(self) -> CallForm | None:
        """How calls of tools are written; None: there is no place for tools."""
        return None if self.own else self.template.call_form

    @property
    def thinks(self) -> bool:
        """Whether thoughts are marked with `<think>` and `</think>`."""
        return not self.own and self.template.thinks

    def options(self, given: Mapping[str, Any], effort: str | None) -> dict[str, Any]:
        """Return what is set in the template, from settings and from how long the model may think.

        Raises BadInput for what the template does not read, unless it asks for nothing.
        """
        reads = (lambda name: False) if self.own else self.template.reads
        options = dict(given)
        if effort is not None and reads("enable_thinking") and not reads("reasoning_effort"):
            options.setdefault("enable_thinking", effort not in ("none", "minimal"))
        elif effort is not None and (effort != "none" or reads("reasoning_effort")):
            options.setdefault("reasoning_effort", effort)
        for name, value in options.items():
            if name in RESERVED or (value and not reads(name)):
                raise BadInput(f"this model's chat template has no setting {shown(name)}")
        return {name: value for name, value in options.items() if reads(name)}

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the ids that the model continues with an answer.

        Args:
            messages: of the roles system, user and assistant, with a text each; calls and results
                of tools, if there is a `call_form`.
            tools: those that may be called, if there is a `call_form`.
            options: as `self.options` returns them.

        Raises:
            BadInput: the template refuses the messages, or can't be used.
        """
        if not self.own:
            return self.template.prompt_ids(messages, tools, options)
        for message in messages:
            if message["role"] not in ROLES or message.get("tool_calls"):
                raise BadInput("this model's chat template has no place for calls of tools")
        turns = [Turn(ROLES[message["role"]], message["content"]) for message in messages]
        return tokenize(self.tokenizer, turns, add_generation_prompt=True).ids.tolist()

    def examples(self, conversations: Sequence[Conversation]) -> list[Examples]:
        """Return what is learned from each conversation; refused ones say why.

        Pion's own format has no place for tools and for thoughts. Raises BadInput if the template
        can't be used at all.
        """
        if not self.own:
            return self.template.tokenize_batch(conversations)
        tokenized = tokenize_batch(self.tokenizer, map(turns_of, conversations))
        return [_own(one, conversation) for one, conversation in zip(tokenized, conversations)]

    def close(self) -> None:
        """End the process that renders the template, if there is one."""
        if "template" in vars(self):
            self.template.close()


def _own(tokenized: Tokenized, conversation: Conversation) -> Examples:
    answers = (conversation.messages[answer] for answer in answers_in(conversation))
    thoughts = sum(THOUGHTS in answer for answer in answers)
    return Examples(
        (tokenized,), thoughts=thoughts, lost_thoughts=thoughts, lost_tools=has_tools(conversation)
    )
