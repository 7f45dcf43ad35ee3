"""One side of a preference: a prompt and an answer as messages, and what both sides share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pion.data.chat.messages import Message, parse_message, says_something
from pion.errors import BadInput
from pion.later_fields import shown

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SYSTEMS = ("system", "developer")


def prompt_messages(value: Any, where: str) -> list[Message]:
    """Return the messages of a prompt: a text is the user's.

    Raises:
        BadInput: it is neither a text nor a list of messages, or says nothing.
    """
    if not isinstance(value, str | list):
        raise BadInput(f"{where} must be text or a list of messages, not {shown(value)}")
    messages = (
        [{"role": "user", "content": value}] if isinstance(value, str) else _parsed(value, where)
    )
    if not any(map(says_something, messages)):
        raise BadInput(f"{where} is empty")
    return messages


def side(value: Any, prompt: Sequence[Message], where: str) -> list[Message]:
    """Return the messages of the prompt and the answer `value`.

    A list that does not begin with an answer has the prompt itself, maybe with a system message
    that the data set's prompt lacks. So has a transcript.

    Raises:
        BadInput: the answer is none, or it is without a prompt.
    """
    if isinstance(value, str):
        answer: list[Message] = [{"role": "assistant", "content": value}]
        messages = transcript(value, where) if is_transcript(value) else answer
    elif isinstance(value, dict):
        messages = _parsed([value], where)
    elif isinstance(value, list):
        messages = _parsed(value, where)
    else:
        raise BadInput(f"{where} must be text, a message or a list of messages, not {shown(value)}")
    if not messages:
        raise BadInput(f"{where} is an empty list")
    if messages[0]["role"] != "assistant":
        return messages
    if not prompt:
        raise BadInput(
            f"{where} begins with the answer, and there is no prompt: expected a prompt under "
            "'prompt', as the first messages of a list, or in a text that begins with "
            r'"\n\nHuman:"'
        )
    return [*prompt, *messages]


def is_transcript(text: str) -> bool:
    """Return whether a text begins as a transcript of Human and Assistant."""
    return text.startswith("\n\nHuman:")


def transcript(text: str, where: str, *, ends_open: bool = False) -> list[Message]:
    """Return the messages of a text that begins with Human, and in which both take turns.

    With `ends_open`, the answer after the last "Assistant:" is still missing: it is a prompt.

    Raises:
        BadInput: Human and Assistant don't take turns, or Human is last.
    """
    parts = _TURN.split(text)[1:]
    names, texts = parts[::2], parts[1::2]
    for number, name in enumerate(names, 1):
        if name != ("Human", "Assistant")[(number - 1) % 2]:
            raise BadInput(
                f"{where}: turn {number} is by {name} again: Human and Assistant must take turns"
            )
    if names[-1] != "Assistant":
        raise BadInput(f"{where} ends with a turn of Human, without an answer of Assistant")
    messages: list[Message] = [
        {"role": _ROLES[name], "content": said.strip()} for name, said in zip(names, texts)
    ]
    if ends_open and messages.pop()["content"]:
        raise BadInput(f'{where} must end with "Assistant:", without an answer')
    return messages


def with_system(system: Any, messages: list[Message], where: str) -> list[Message]:
    """Return the messages with a system message first, if there is a text and none is there.

    Raises:
        BadInput: `system` is neither text nor null.
    """
    if not isinstance(system, str | None):
        raise BadInput(f"{where}: key 'system' must be text or null, not {shown(system)}")
    if not (system or "").strip() or any(m["role"] in _SYSTEMS for m in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def answered(messages: Sequence[Message], where: str) -> list[Message]:
    """Return the messages up to the last answer, which may be empty; others say something.

    Raises:
        BadInput: there is no answer.
    """
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise BadInput(f"{where} has no message by the assistant, so no answer")
    return [*filter(says_something, messages[:last]), messages[last]]


def shared_messages(chosen: Sequence[Message], rejected: Sequence[Message], where: str) -> int:
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


def before_answer(prompt: Sequence[Message], messages: Sequence[Message], where: str) -> int:
    """Return how many messages come before the answer, if there is no other side to compare with.

    They are those of the prompt, and everything up to the user's last message.

    Raises:
        BadInput: no message is by the user.
    """
    asked = [i for i, message in enumerate(messages[:-1]) if message["role"] == "user"]
    if not asked:
        raise BadInput(f"{where}: there is no prompt: no message by the user before the answer")
    added = int(messages[0]["role"] in _SYSTEMS and prompt[:1] != messages[:1])
    end = added + len(prompt)
    begins = end < len(messages) and list(messages[added:end]) == list(prompt)
    return max(asked[-1] + 1, end if begins else 0)


def agree(prompt: Sequence[Message], context: Sequence[Message], where: str) -> None:
    """Raise BadInput unless the prompt is that of the messages before the answers.

    One message may be any of the user's: data sets of long conversations give only one of them.
    """
    said = [message for message in prompt if message["role"] not in _SYSTEMS]
    there = [message for message in context if message["role"] not in _SYSTEMS]
    said = [message for message in said if says_something(message)]
    if len(said) == 1 and any(_equal(said[0], message) for message in there):
        return
    if len(said) <= len(there) and all(map(_equal, said, there)):
        return
    raise BadInput(
        f"{where}: key 'prompt' and the messages before the answers disagree: the prompt is "
        f"{shown(_text(said))}, the messages are {shown(_text(there))}"
    )


def _parsed(messages: Sequence[Any], where: str) -> list[Message]:
    return [
        parse_message(message, "role", "content", f"{where}: message {number}")
        for number, message in enumerate(messages, 1)
    ]


def _equal(one: Message, other: Message) -> bool:
    """Return whether messages are equal but for space around their texts, which is left out."""
    stripped = [{**message, "content": _said(message)} for message in (one, other)]
    return stripped[0] == stripped[1]


def _said(message: Message) -> str:
    return (message["content"] or "").strip()


def _text(messages: Sequence[Message]) -> str:
    return " / ".join(map(_said, messages))
