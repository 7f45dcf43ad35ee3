"""Preferences: pairs of answers, and single answers with a label, from records of any layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pion.data.chat.messages import (
    Conversation,
    Message,
    answers_in,
    said_in,
    says_something,
    without_end,
)
from pion.data.records.fields import Fields, yes_or_no
from pion.data.records.layouts import (
    ANSWERS,
    LABELS,
    REJECTED,
    SCORES,
    SIDES,
    TURNS,
    prompt_of,
    seen_in,
    side,
    tools_of,
    turns_under,
    with_system,
)
from pion.data.records.transcripts import marked
from pion.data.records.turns import known_role, role_name
from pion.errors import BadInput
from pion.later_fields import shown


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
    """Return the preference of a record.

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
    fields = Fields(record, where)
    plain, responses, openai = SIDES
    if any(key in fields.values for key in openai):
        return _openai(fields, openai)
    if any(key in fields.values for key in (*plain, responses[0])):
        return _pair(fields, plain if responses[0] not in fields.values else responses)
    if fields.there(*REJECTED):
        return _corrected(fields)
    if fields.there(*LABELS, "completion"):
        return _labelled(fields)
    names = ", ".join(map(shown, fields.names)) or "no key"
    raise BadInput(
        f"{where}: not a preference: expected the keys 'chosen' and 'rejected' (with 'prompt', or "
        "lists of messages), 'messages' and 'rejected_response', 'preferred_output' and "
        "'non_preferred_output' (with 'input'), or 'prompt', 'completion' and 'label', found "
        f"{names}"
    )


def _pair(fields: Fields, keys: tuple[str, str]) -> Pair:
    _require(fields, keys)
    chosen, rejected = map(fields.take, keys)
    prompt = _prompt(fields, chosen)
    sides = [
        side(fields, value, prompt, _place(fields, key))
        for value, key in zip((chosen, rejected), keys)
    ]
    return _of_sides(fields, prompt, sides, keys, tools_of(fields))


def _openai(fields: Fields, keys: tuple[str, str]) -> Pair:
    _require(fields, keys)
    inputs, where = fields.take("input"), _place(fields, "input")
    if not isinstance(inputs, dict) or not isinstance(inputs.get("messages"), list):
        raise BadInput(
            f"{where} must be an object with a list of messages under 'messages', "
            f"not {shown(inputs)}"
        )
    prompt = turns_under(fields, inputs["messages"], f"{fields.where}: key 'input.messages'")
    sides = [side(fields, fields.take(key), prompt, _place(fields, key)) for key in keys]
    return _of_sides(fields, prompt, sides, keys, tools_of(fields, inputs.get("tools")))


def _corrected(fields: Fields) -> Pair:
    """Return the pair of a conversation, which ends with the chosen answer, and a worse answer, or
    worse turns."""
    worse = fields.one_of(REJECTED, "rejected answer")
    assert worse is not None
    key, prompt, chosen = _one_answer(fields, worse)
    if not chosen or chosen[-1]["role"] != "assistant":
        raise BadInput(f"{_place(fields, key)} does not end with an answer, the chosen one")
    rejected = side(fields, fields.take(worse), chosen[:-1], _place(fields, worse))
    return _of_sides(fields, prompt, [chosen, rejected], (key, worse), tools_of(fields))


def _one_answer(fields: Fields, beside: str) -> tuple[str, list[Message], list[Message]]:
    """Return the key of turns or of an answer, the prompt next to it, and the messages of both.

    Raises BadInput if there is no such key; it belongs to the key `beside`.
    """
    key = fields.one_of(TURNS, "conversation") or fields.one_of(ANSWERS, "answer")
    if key is None:
        raise BadInput(f"{_place(fields, 'completion')} is missing; it belongs to {beside!r}")
    value = fields.take(key)
    if key in TURNS:
        return key, [], turns_under(fields, value, _place(fields, key))
    prompt = _prompt(fields, value)
    return key, prompt, side(fields, value, prompt, _place(fields, key))


def _of_sides(
    fields: Fields,
    prompt: Sequence[Message],
    sides: Sequence[list[Message]],
    keys: Sequence[str],
    tools: list[dict[str, Any]] | None,
) -> Pair:
    """Return the pair whose sides have been read from these keys."""
    where = fields.where
    chosen, rejected = (_answered(fields, answer, key) for answer, key in zip(sides, keys))
    context = _shared_messages(chosen, rejected, where)
    _agree(prompt, chosen[:context], where)
    # What differs only in the space around it is the same.
    same = [one if _equal(one, other) else other for one, other in zip(chosen, rejected)]
    rejected = [*same, *rejected[len(chosen) :]]
    scores, status = _scores(fields), fields.take("status")
    one, other = (Conversation(side, tools, where, context) for side in (chosen, rejected))
    return Pair(
        _learned(replace(one, seen=seen_in(fields)), keys[0]),
        _learned(other, keys[1]),
        scores,
        tie=status == "tie" or (scores is not None and scores[0] == scores[1]),
    )


def _labelled(fields: Fields) -> Labelled:
    label, where = fields.one_of(LABELS, "label"), fields.where
    if label is None:
        raise BadInput(f"{where}: key 'label' is missing; it belongs to 'completion'")
    desired = yes_or_no(fields.take(label), _place(fields, label))
    key, prompt, turns = _one_answer(fields, label)
    messages, tools = _answered(fields, turns, key), tools_of(fields)
    context = _before_answer(prompt, messages, where)
    _agree(prompt, messages[:context], where)
    answer = Conversation(messages, tools, where, context, seen_in(fields))
    return Labelled(_learned(answer, key), desired)


def _prompt(fields: Fields, answer: Any) -> list[Message]:
    """Return the messages of the record's prompt; none if the record has no key for it.

    Turns are the prompt if the answer does not repeat it, and there is no other.
    """
    prompt, _ = prompt_of(fields)
    first = answer[0] if isinstance(answer, list) and answer else answer
    begins = not isinstance(first, dict) or known_role(role_name(first) or "") == "assistant"
    if prompt or not begins or marked(first):
        return prompt
    key = fields.one_of(TURNS, "prompt")
    if key is None:
        return []
    turns = turns_under(fields, fields.take(key), _place(fields, key))
    if turns and turns[-1]["role"] == "assistant":
        raise BadInput(
            f"{_place(fields, key)} ends with an answer already, and the record has more answers. "
            "Which of them follows the prompt is not clear: remove the last turn"
        )
    return turns


def _learned(conversation: Conversation, key: str) -> Conversation:
    """Return the conversation. Raises BadInput if nothing is learned after its context."""
    if not answers_in(conversation):
        raise BadInput(f"{conversation.where}: key {key!r}: the answer must not have weight 0")
    return conversation


def _place(fields: Fields, key: str) -> str:
    return f"{fields.where}: key {key!r}"


def _scores(fields: Fields) -> tuple[float, float] | None:
    for keys in SCORES:
        scores = {key: fields.take(key) for key in keys if key in fields.values}
        for key, value in scores.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) < math.inf:
                raise BadInput(f"{_place(fields, key)} must be a number, not {shown(value)}")
        if len(scores) == len(keys):
            chosen, rejected = scores.values()
            return chosen, rejected
    return None


def _require(fields: Fields, keys: Sequence[str]) -> None:
    for key, other in zip(keys, keys[::-1]):
        if key not in fields.values:
            raise BadInput(f"{_place(fields, key)} is missing; it belongs to {other!r}")


# ---------------------------------------------------------------- what both sides share


def _answered(fields: Fields, answer: list[Message], key: str) -> list[Message]:
    """Return the messages up to the last answer, which may be empty; others say something.

    Raises:
        BadInput: there is no answer.
    """
    messages = [without_end(message) for message in with_system(fields, answer)]
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise BadInput(f"{_place(fields, key)} has no message by the assistant, so no answer")
    return [*(messages[i] for i in said_in(messages[:last])), messages[last]]


def _shared_messages(chosen: Sequence[Message], rejected: Sequence[Message], where: str) -> int:
    """Return how many leading messages both sides have: the prompt. Their answers are left out.

    Raises:
        BadInput: the first message that differs is no answer.
    """
    most = min(len(chosen), len(rejected)) - 1
    context = next((i for i in range(most) if not _equal(chosen[i], rejected[i])), most)
    if _equal(chosen[context], rejected[context]) and len(chosen) != len(rejected):
        longer = "chosen" if len(chosen) > len(rejected) else "rejected"
        raise BadInput(
            f"{where}: key '{longer}' has all messages of the other side and goes on after them: "
            "the two are not answers to the same prompt"
        )
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if (role := messages[context]["role"]) != "assistant":
            raise BadInput(
                f"{where}: chosen and rejected must first differ in an answer, but message "
                f"{context + 1} of '{name}' differs and is by {role}"
            )
    return context


def _before_answer(prompt: Sequence[Message], messages: Sequence[Message], where: str) -> int:
    """Return how many messages come before the answer, if there is no other side to compare with.

    They are those of the prompt, and everything up to the user's last message.

    Raises:
        BadInput: no message is by the user.
    """
    user_turns = [i for i, message in enumerate(messages[:-1]) if message["role"] == "user"]
    if not user_turns:
        raise BadInput(f"{where}: there is no prompt: no message by the user before the answer")
    added = int(messages[0]["role"] == "system" and prompt[:1] != messages[:1])
    end = added + len(prompt)
    begins = end < len(messages) and list(messages[added:end]) == list(prompt)
    return max(user_turns[-1] + 1, end if begins else 0)


def _agree(prompt: Sequence[Message], context: Sequence[Message], where: str) -> None:
    """Raise BadInput unless the prompt is that of the messages before the answers.

    One message may be any of the user's: data sets of long conversations give only one of them.
    """
    prompt_messages = [without_end(message) for message in prompt if message["role"] != "system"]
    spoken = [prompt_messages[i] for i in said_in(prompt_messages)]
    context_messages = [message for message in context if message["role"] != "system"]
    if len(spoken) == 1 and any(_equal(spoken[0], message) for message in context_messages):
        return
    if len(spoken) <= len(context_messages) and all(map(_equal, spoken, context_messages)):
        return
    raise BadInput(
        f"{where}: key 'prompt' and the messages before the answers disagree: the prompt is "
        f"{shown(_text(spoken))}, the messages are {shown(_text(context_messages))}"
    )


def _equal(message_a: Message, other: Message) -> bool:
    """Return whether messages are equal but for space around their texts."""
    stripped = [{**message, "content": _said(message)} for message in (message_a, other)]
    return stripped[0] == stripped[1]


def _said(message: Message) -> str:
    return (message["content"] or "").strip()


def _text(messages: Sequence[Message]) -> str:
    return " / ".join(map(_said, messages))
