"""Conversations as a model's own chat template gets them: messages and tools as in the data.

Pion's own template needs roles and texts alone (`pion.data.chat.conversation`). A template of
others can also write calls of tools, their results and the tools themselves, so nothing is left out
here. Calls have several forms, and templates can lose a call or leave it without an end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pion.data.chat.conversation import defused, nothing_to_learn, role_of, unknown_role
from pion.errors import BadInput
from pion.later_fields import shown

# The roles that templates know. `developer` is a newer name of `system`.
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages and the tools that they may call, as a template gets them.

    Attributes:
        where: the record's file and line, for errors.
        context: of so many leading messages nothing is learned: both sides of a preference share
            them.
        options: what the caller sets in the template (`enable_thinking`).
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None
    where: str
    context: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_messages(record: Any, where: str) -> Conversation:
    """Return the conversation of a record in one of the layouts of `parse_conversation`.

    A message keeps all of its keys (`tool_calls`, `name`, …), and its content may be null. Only
    keys that are null are left out, because tables have every key in every row. Other names
    of roles (`role_of`) become these. Messages after the last answer teach nothing and are left
    out.

    Args:
        where: the record's file and line, for errors.

    Raises:
        BadInput: the record has another layout, an unknown role, or no answer.
    """
    if isinstance(record, dict) and isinstance(record.get("conversations"), list):
        turns, role_key, text_key = record["conversations"], "from", "value"
    elif isinstance(record, dict) and isinstance(record.get("messages"), list):
        turns, role_key, text_key = record["messages"], "role", "content"
    else:
        raise BadInput(
            f"{where}: not a conversation: expected a list under 'conversations' "
            f"([{{from, value}}]) or 'messages' ([{{role, content}}]), found {shown(record)}"
        )
    messages = [
        parse_message(turn, role_key, text_key, f"{where}: turn {number}")
        for number, turn in enumerate(turns, 1)
    ]
    answers = sum(message["role"] == "assistant" for message in messages)
    messages = [message for message in messages if says_something(message)]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise nothing_to_learn(answers, where)
    return Conversation(messages, parse_tools(record.get("tools"), where), where)


def harmless(conversation: Conversation, specials: Iterable[str]) -> Conversation:
    """Return the conversation with texts stripped and special tokens in them defused.

    See `pion.data.chat.conversation` for how and why texts are defused; here it covers calls and
    tools too.
    """
    defuse = partial(defused, specials=tuple(specials))
    messages = [
        {**message, "content": message["content"].strip()} if message.get("content") else message
        for message in conversation.messages
    ]
    return replace(
        conversation,
        messages=with_texts(messages, defuse),
        tools=with_texts(conversation.tools, defuse),
        options=with_texts(conversation.options, defuse),
    )


def parse_message(turn: Any, role_key: str, text_key: str, where: str) -> Message:
    """Return one message, as `parse_messages` does. Raises BadInput, naming `where`."""
    if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
        raise BadInput(f"{where} must be an object with text under {role_key!r}: {shown(turn)}")
    named = turn[role_key].strip().lower()
    role = named if named in KNOWN_ROLES else role_of(named)
    if role is None:
        raise unknown_role(turn[role_key], KNOWN_ROLES, where)
    content = turn.get(text_key)
    if not isinstance(content, str | None):
        raise BadInput(f"{where}: {text_key!r} must be text or null, not {shown(content)}")
    rest = {k: v for k, v in turn.items() if v is not None and k not in (role_key, text_key)}
    return {"role": role, "content": content, **rest}


def says_something(message: Message) -> bool:
    """Return whether a message has a text or calls. An empty result of a tool says something."""
    return bool(
        (message.get("content") or "").strip()
        or message.get("tool_calls")
        or message["role"] == "tool"
    )


def system_texts(conversation: Conversation) -> list[str]:
    """Return the texts of the system messages."""
    systems = (m for m in conversation.messages if m["role"] in ("system", "developer"))
    return [message["content"] or "" for message in systems]


def parse_tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """Return the tools of a record, if it has any. Raises BadInput unless they are objects."""
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadInput(f"{where}: 'tools' must be a list of objects, not {shown(tools)}")
    return tools


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with a change made to all of its texts and keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {with_texts(k, change): with_texts(item, change) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(item, change) for item in value]
    return value


def answers_in(conversation: Conversation) -> list[int]:
    """Return the numbers of the assistant's messages after the context, counted from 0."""
    return [
        i
        for i, message in enumerate(conversation.messages)
        if message["role"] == "assistant" and i >= conversation.context
    ]


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


def calls_before(conversation: Conversation) -> list[int]:
    """Return the numbers of the assistant's messages with calls in the context."""
    leading = conversation.messages[: conversation.context]
    return [i for i, m in enumerate(leading) if m["role"] == "assistant" and m.get("tool_calls")]


def lost_call(
    conversation: Conversation, answers: Iterable[int], texts: Iterable[str]
) -> str | None:
    """Return why a conversation is refused: `texts`, one of each of `answers`, lack its calls."""
    for number, (answer, text) in enumerate(zip(answers, texts), 1):
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
