"""What both sides of a preference share: the prompt, before their answers."""

from __future__ import annotations

from collections.abc import Sequence

from pion.data.chat.messages import Message, says_something
from pion.errors import BadInput
from pion.later_fields import shown


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
    added = int(messages[0]["role"] == "system" and prompt[:1] != messages[:1])
    end = added + len(prompt)
    begins = end < len(messages) and list(messages[added:end]) == list(prompt)
    return max(asked[-1] + 1, end if begins else 0)


def agree(prompt: Sequence[Message], context: Sequence[Message], where: str) -> None:
    """Raise BadInput unless the prompt is that of the messages before the answers.

    One message may be any of the user's: data sets of long conversations give only one of them.
    """
    said = [message for message in prompt if message["role"] != "system"]
    there = [message for message in context if message["role"] != "system"]
    said = [message for message in said if says_something(message)]
    if len(said) == 1 and any(_equal(said[0], message) for message in there):
        return
    if len(said) <= len(there) and all(map(_equal, said, there)):
        return
    raise BadInput(
        f"{where}: key 'prompt' and the messages before the answers disagree: the prompt is "
        f"{shown(_text(said))}, the messages are {shown(_text(there))}"
    )


def _equal(one: Message, other: Message) -> bool:
    """Return whether messages are equal but for space around their texts, which is left out."""
    stripped = [{**message, "content": _said(message)} for message in (one, other)]
    return stripped[0] == stripped[1]


def _said(message: Message) -> str:
    return (message["content"] or "").strip()


def _text(messages: Sequence[Message]) -> str:
    return " / ".join(map(_said, messages))
