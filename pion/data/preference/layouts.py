"""Examples of preferences as data sets write them: six layouts, told apart by their keys.

explicit      prompt, chosen, rejected                     UltraFeedback, Tulu 3, distilabel
with system   system, question (or prompt, input), chosen, rejected            orca_dpo_pairs
implicit      chosen, rejected: lists of messages that begin with the same prompt
OpenAI        input.messages, preferred_output, non_preferred_output
transcript    chosen, rejected: texts of "\\n\\nHuman:" and "\\n\\nAssistant:"      hh-rlhf
unpaired      prompt, completion, label: true or false                          kto-mix

Other keys are ignored. A prompt is a text or a list of messages. An answer is a text, a message, or
a list of messages, which may repeat the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.data.chat.messages import Conversation, Message, parse_tools, says_something
from pion.data.preference.sides import (
    agree,
    answered,
    before_answer,
    is_transcript,
    prompt_messages,
    shared_messages,
    side,
    transcript,
    with_system,
)
from pion.errors import BadInput
from pion.later_fields import shown

_PROMPTS = ("prompt", "question", "input")
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_OPENAI = ("preferred_output", "non_preferred_output")
# Of tables, only these columns are read.
PREFERENCE_KEYS = (
    *_PROMPTS,
    *("system", "chosen", "rejected", "completion", "label", "status", "tools"),
    *_OPENAI,
    *(key for keys in _SCORES for key in keys),
)


@dataclass(frozen=True)
class Pair:
    """Two answers to the same prompt, of which the chosen one is better.

    Attributes:
        chosen: prompt and answer. The context of both conversations is the prompt, and equal.
        scores: of the chosen and of the rejected answer; None without scores.
        tie: whether the data say that the answers are equally good.
    """

    chosen: Conversation
    rejected: Conversation
    scores: tuple[float, float] | None = None
    tie: bool = False

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """The chosen one, then the rejected one."""
        return self.chosen, self.rejected

    @property
    def preferred(self) -> tuple[bool, ...]:
        """Whether each conversation is preferred."""
        return True, False

    @property
    def swapped(self) -> bool:
        """Whether the chosen answer has the lower score."""
        return self.scores is not None and self.scores[0] < self.scores[1]


@dataclass(frozen=True)
class Labelled:
    """An answer that is desired or not; its context is the prompt."""

    answer: Conversation
    desired: bool

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """The one conversation."""
        return (self.answer,)

    @property
    def preferred(self) -> tuple[bool, ...]:
        """Whether the conversation is desired."""
        return (self.desired,)


Preference = Pair | Labelled


def is_empty(conversation: Conversation) -> bool:
    """Return whether the answer at the end of a conversation has neither a text nor calls."""
    return not says_something(conversation.messages[-1])


def differs_early(preference: Preference) -> bool:
    """Return whether the sides differ from an earlier answer on, so that other turns follow it."""
    return any(
        message["role"] == "user"
        for conversation in preference.conversations
        for message in conversation.messages[conversation.context :]
    )


def parse_preference(record: Any, where: str) -> Preference:
    """Return the preference of a record in one of the six layouts.

    Messages that say nothing are left out, except an empty answer at the end. So are messages after
    the last answer.

    Args:
        where: the record's file and line, for errors.

    Raises:
        BadInput: the record has another layout, or a key that is not what its layout says. The
            message names the key.
    """
    if not isinstance(record, dict):
        raise BadInput(f"{where}: not a preference: found {shown(record)} instead of an object")
    if any(key in record for key in _OPENAI):
        return _openai(record, where)
    if "chosen" in record or "rejected" in record:
        _require(record, ("chosen", "rejected"), where)
        return _pair(record, where)
    if "completion" in record or "label" in record:
        _require(record, ("completion", "label"), where)
        return _labelled(record, where)
    keys = ", ".join(map(shown, record)) or "no key"
    raise BadInput(
        f"{where}: not a preference: expected the keys 'chosen' and 'rejected' (with 'prompt', or "
        "lists of messages), 'preferred_output' and 'non_preferred_output' (with 'input'), or "
        f"'prompt', 'completion' and 'label', found {keys}"
    )


def _pair(record: Mapping[str, Any], where: str) -> Pair:
    return _of_sides(record, _prompt(record, where), ("chosen", "rejected"), where)


def _openai(record: Mapping[str, Any], where: str) -> Pair:
    _require(record, _OPENAI, where)
    given = record.get("input")
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise BadInput(
            f"{where}: key 'input' must be an object with a list of messages under 'messages', "
            f"not {shown(given)}"
        )
    prompt = prompt_messages(given["messages"], f"{where}: key 'input.messages'")
    tools = record.get("tools") or given.get("tools")
    return _of_sides({**record, "tools": tools}, prompt, _OPENAI, where)


def _of_sides(
    record: Mapping[str, Any], prompt: Sequence[Message], keys: tuple[str, str], where: str
) -> Pair:
    """Return the pair whose chosen and rejected answers are under `keys`."""
    chosen, rejected = (_side(record, key, prompt, where) for key in keys)
    context = shared_messages(chosen, rejected, where)
    agree(prompt, chosen[:context], where)
    tools = parse_tools(record.get("tools"), where)
    scores = _scores(record, where)
    return Pair(
        Conversation(chosen, tools, where, context),
        Conversation(rejected, tools, where, context),
        scores,
        tie=record.get("status") == "tie" or (scores is not None and scores[0] == scores[1]),
    )


def _labelled(record: Mapping[str, Any], where: str) -> Labelled:
    label = record["label"]
    if not isinstance(label, bool):
        raise BadInput(f"{where}: key 'label' must be true or false, not {shown(label)}")
    prompt = _prompt(record, where)
    messages = _side(record, "completion", prompt, where)
    context = before_answer(prompt, messages, where)
    agree(prompt, messages[:context], where)
    tools = parse_tools(record.get("tools"), where)
    return Labelled(Conversation(messages, tools, where, context), label)


def _side(
    record: Mapping[str, Any], key: str, prompt: Sequence[Message], where: str
) -> list[Message]:
    place = f"{where}: key '{key}'"
    messages = side(record[key], prompt, place)
    return answered(with_system(record.get("system"), messages, where), place)


def _prompt(record: Mapping[str, Any], where: str) -> list[Message]:
    """Return the messages of the record's prompt; none if the record has no key for it."""
    for key in _PROMPTS:
        if record.get(key) is None:
            continue
        value = record[key]
        if isinstance(value, str) and is_transcript(value):
            return transcript(value, f"{where}: key '{key}'", ends_open=True)
        return prompt_messages(value, f"{where}: key '{key}'")
    return []


def _scores(record: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    for keys in _SCORES:
        found = {key: record[key] for key in keys if record.get(key) is not None}
        for key, value in found.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) < math.inf:
                raise BadInput(f"{where}: key '{key}' must be a number, not {shown(value)}")
        if len(found) == len(keys):
            chosen, rejected = found.values()
            return chosen, rejected
    return None


def _require(record: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if record.get(key) is None:
            there = "is null" if key in record else "is missing"
            raise BadInput(f"{where}: key '{key}' {there}; it belongs to {_others(key, keys)}")


def _others(key: str, keys: Sequence[str]) -> str:
    return " and ".join(f"'{other}'" for other in keys if other != key)
