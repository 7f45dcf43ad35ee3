"""Conversations as a model's own chat template gets them: messages and tools as in the data.

Pion's own template needs roles and texts alone (`pion.data.chat.conversation`). A template of
others can also write calls of tools, their results and the tools themselves, so nothing is left out
here. Calls have several forms, and templates can lose a call or leave it without an end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pion.data.chat.conversation import ROLES, Turn, defused
from pion.errors import BadInput
from pion.later_fields import shown

# The roles that templates know. `developer` is a newer name of `system`.
KNOWN_ROLES = ("system", "user", "assistant", "tool")
# What was thought before a message. Some templates know it as `thinking`, so a message has both.
THOUGHTS = "reasoning_content"
Message = dict[str, Any]
# What data sets write at the end of an answer, where a template writes its own mark.
_END = re.compile(
    r"(<[|｜](im_end|end|return|eo[stm](_id)?|end[_▁]?of[_▁]?\w{1,20})[|｜]>|"
    r"<end_of_turn>|<eos>|</s>)\Z",
    re.IGNORECASE,
)
_LONGEST_END = 40


@dataclass(frozen=True)
class Seen:
    """What a record has besides what is learned from it.

    Attributes:
        layout: what its keys are, in words; "" for a list of turns.
        unread: filled keys that are not read.
        roles: other names of roles, and the role that each was read as.
        notes: what was changed in its turns, in words.
    """

    layout: str = ""
    unread: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages and the tools that they may call, as a template gets them.

    Attributes:
        where: the record's file and line, for errors.
        context: of so many leading messages nothing is learned: both sides of a preference share
            them.
        seen: what else its record has.
        options: what the caller sets in the template (`enable_thinking`).
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None
    where: str
    context: int = 0
    seen: Seen = field(default=Seen(), compare=False)
    options: Mapping[str, Any] = field(default_factory=dict)


def tidied(conversation: Conversation) -> Conversation:
    """Return a conversation without marks at the ends of its answers, and without messages that say
    nothing. An empty answer leaves with its question, unless another answer follows it."""
    messages = [without_end(message) for message in conversation.messages]
    numbers = said_in(messages)
    answers = {i for i, message in enumerate(messages) if message["role"] == "assistant"}
    notes = {
        "the mark at the end of an answer, such as <|im_end|>, is dropped": (
            messages != list(conversation.messages)
        ),
        "an empty answer is left out with its question": answers - set(numbers),
    }
    return replace(
        conversation,
        messages=[messages[i] for i in numbers],
        context=sum(i < conversation.context for i in numbers),
        seen=replace(conversation.seen, notes=tuple(reason for reason in notes if notes[reason])),
    )


def without_end(message: Message) -> Message:
    """Return a message without a mark at the end of its text, if it is an answer."""
    text = message.get("content") or ""
    if message["role"] != "assistant" or "<s>" in text:  # struck through, in HTML
        return message
    return message if (ended := without_ends(text)) == text else {**message, "content": ended}


def without_ends(text: str) -> str:
    """Return a text without the marks of an end after it. It takes time for its last marks only."""
    shortened = text.rstrip()
    while (mark := _END.search(shortened, max(0, len(shortened) - _LONGEST_END))) is not None:
        text = shortened = shortened[: mark.start()].rstrip()
    return text


def said_in(messages: Sequence[Message]) -> list[int]:
    """Return the numbers of the messages that say something, without questions whose answer says
    nothing. The last question may be without one."""
    numbers: list[int] = []
    after = [*(message["role"] for message in messages[1:]), None]
    for number, message in enumerate(messages):
        if says_something(message):
            numbers.append(number)
        elif message["role"] == "assistant" and after[number] not in ("assistant", None):
            while numbers and messages[numbers[-1]]["role"] == "user":
                numbers.pop()
    return numbers


def learnable(conversation: Conversation) -> Conversation:
    """Return a `tidied` conversation as a template gets it: without messages after the last answer
    that is learned.

    Raises:
        BadInput: nothing is learned.
    """
    tidy = tidied(conversation)
    answers = answers_in(tidy)
    if not answers:
        raise nothing_to_learn(conversation)
    return replace(tidy, messages=tidy.messages[: answers[-1] + 1])


def turns_of(conversation: Conversation) -> list[Turn]:
    """Return a conversation as Pion's own format has it: without calls and results of tools."""
    seen = {i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"}
    seen -= {*answers_in(conversation)}
    return [
        Turn(ROLES[message["role"]], message["content"], number not in seen)
        for number, message in enumerate(conversation.messages)
        if message["role"] != "tool" and message.get("content")
    ]


def nothing_to_learn(conversation: Conversation) -> BadInput:
    """Return the refusal of a conversation of which nothing is learned."""
    messages, where = conversation.messages, conversation.where
    answers = [message for message in messages if message["role"] == "assistant"]
    not_empty = [message for message in answers if says_something(without_end(message))]
    why = "with no assistant turn"
    if not_empty and any(message.get("learned", True) for message in not_empty):
        why = "whose answers only call tools, for which Pion's own template has no place"
    elif not_empty:
        why = "whose answers all have weight 0"
    elif answers:
        is_single = len(answers) == 1
        why = "whose answer is empty" if is_single else f"whose {len(answers)} answers are empty"
    return BadInput(f"{where}: a conversation {why}: there is nothing to learn from it.")


def harmless(conversation: Conversation, specials: Iterable[str]) -> Conversation:
    """Return the conversation with special tokens in its texts defused.

    See `pion.data.chat.conversation` for how and why texts are defused; here it covers calls and
    tools too.
    """
    defuse = partial(defused, specials=tuple(specials))
    return replace(
        conversation,
        messages=with_texts(conversation.messages, defuse),
        tools=with_texts(conversation.tools, defuse),
        options=with_texts(conversation.options, defuse),
    )


def says_something(message: Message) -> bool:
    """Return whether a message has a text or calls. An empty result of a tool says something."""
    return bool(
        (message.get("content") or "").strip()
        or message.get("tool_calls")
        or message["role"] == "tool"
    )


def has_tools(conversation: Conversation) -> bool:
    """Return whether a conversation has tools, calls of tools or results of them."""
    used = (m["role"] == "tool" or m.get("tool_calls") for m in conversation.messages)
    return bool(conversation.tools) or any(used)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with a change made to all of its texts and keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {with_texts(k, change): with_texts(item, change) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(item, change) for item in value]
    return value


def answers_in(conversation: Conversation) -> list[int]:
    """Return the numbers of the answers that are learned, counted from 0: after the context."""
    return [
        i
        for i, message in enumerate(conversation.messages)
        if message["role"] == "assistant"
        and i >= conversation.context
        and message.get("learned", True)
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


def calls_before(conversation: Conversation, answers: Sequence[int]) -> list[int]:
    """Return the numbers of the assistant's messages with calls that are not learned."""
    leading = enumerate(conversation.messages[: answers[-1]] if answers else ())
    calls = [i for i, m in leading if m["role"] == "assistant" and m.get("tool_calls")]
    return [i for i in calls if i not in answers]


def lost_call(
    conversation: Conversation, answers: Iterable[int], texts: Iterable[str]
) -> str | None:
    """Return why a conversation is refused: `texts`, one of each of `answers`, lack its calls."""
    for number, (answer, text) in enumerate(zip(answers, texts), 1):
        message = conversation.messages[answer]
        for name in names_of(message.get("tool_calls")):
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
        calls = conversation.messages[answer].get("tool_calls")
        if calls and end not in stops:
            name = next(iter(names_of(calls)), None)
            return (
                f"{conversation.where}: answer {number} calls {shown(name)}, and the chat template "
                f"ends this call with {shown(end)}, at which the model does not stop: it would "
                f"never learn to end the call. It stops at {shown(', '.join(stops))}. Use a newer "
                "template of the model, leave out conversations with such calls, or, if the model "
                "ends calls with this token, add the token's id to eos_token_id in its "
                "generation_config.json"
            )
    return None


def names_of(calls: Iterable[Any] | None) -> list[str]:
    """Return the names of the functions in tools, or in calls of them."""
    names = []
    for call in calls or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        names.append(str(function.get("name") if isinstance(function, dict) else None))
    return names
