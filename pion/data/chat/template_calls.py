"""Calls of tools in a conversation: the forms that templates take, and calls that are lost or have
no end."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from pion.data.chat.messages import Conversation, Message
from pion.later_fields import shown


def answers_in(conversation: Conversation) -> list[int]:
    """Return the numbers of the assistant's messages, counted from 0."""
    return [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]


def forms_of(conversation: Conversation) -> Iterator[Conversation]:
    """Yield a conversation, and the other forms of one with calls, of which a template takes one.

    Templates differ in what they want of a call without a text: null or "", and arguments as an
    object or as JSON.
    """
    seen = [list(conversation.messages)]
    yield conversation
    for empty, as_json in ((True, False), (False, True), (True, True)):
        messages = [_call_as(m, empty=empty, as_json=as_json) for m in conversation.messages]
        if messages not in seen:
            seen.append(messages)
            yield replace(conversation, messages=messages)


def _call_as(message: Message, *, empty: bool, as_json: bool) -> Message:
    """Return a message with `""` for no text, and with the arguments of its calls as JSON."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    content = "" if empty and message.get("content") is None else message.get("content")
    if as_json:
        calls = [_with_json(call) for call in calls]
    return {**message, "content": content, "tool_calls": calls}


def _with_json(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def lost_call(conversation: Conversation, texts: Iterable[str]) -> str | None:
    """Return why a conversation is refused: `texts`, one of each answer, lack a call of its."""
    for number, (answer, text) in enumerate(zip(answers_in(conversation), texts), 1):
        message = conversation.messages[answer]
        for name in _names_of(message):
            null = message.get("content") is None and text.lstrip().startswith("None")
            if name not in text or null:
                return (
                    f"{conversation.where}: answer {number} calls {shown(name)}, and the chat "
                    "template does not write calls of tools, or not in this form. Use a model "
                    "whose template writes them, or leave out conversations with calls"
                )
    return None


def endless_call(
    conversation: Conversation, ends: Iterable[str], stops: Collection[str]
) -> str | None:
    """Return why a conversation is refused: a model that learned its calls would not stop there.

    `ends` has the last token that is learned of each answer, `stops` the tokens at which the model
    stops. DeepSeek V3's template writes no end after the first call of a conversation.
    """
    for number, (answer, end) in enumerate(zip(answers_in(conversation), ends), 1):
        if conversation.messages[answer].get("tool_calls") and end not in stops:
            name = next(iter(_names_of(conversation.messages[answer])), None)
            return (
                f"{conversation.where}: answer {number} calls {shown(name)}, and the chat template "
                f"ends this call with {shown(end)}, at which the model does not stop: it would "
                f"never learn to end the call. It stops at {shown(', '.join(stops))}. Use a newer "
                "template of the model, leave out conversations with such calls, or, if the model "
                "ends calls with this token, add the token's id to eos_token_id in its "
                "generation_config.json"
            )
    return None


def _names_of(message: Message) -> list[str]:
    """Return the names of the functions that a message calls."""
    names = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        names.append(str(function.get("name") if isinstance(function, dict) else None))
    return names
