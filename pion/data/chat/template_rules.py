"""Which message of a conversation breaks a rule of a chat template, in words.

What a template says itself is an inner error, or nothing. So the rules that templates have are
looked for in the conversation, and a template has a rule if it refuses a small conversation that
breaks this rule alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pion.data.chat.messages import Message

# The roles of a conversation that breaks one rule.
Probe = tuple[str, ...]
_TWICE = ("user", "user", "assistant")
_NAMES = {"assistant": "answers", "user": "messages by the user"}


def broken_rule(messages: Sequence[Message], refuses: Callable[[Probe], bool]) -> str | None:
    """Return which message breaks which rule; None if no rule is known for it.

    `refuses` says whether the template refuses a conversation of messages by these roles.
    """
    roles = [message["role"] for message in messages]
    return next((rule for probe, rule in _odd(roles) if refuses(probe)), None)


def _odd(roles: Sequence[str]) -> Iterator[tuple[Probe, str]]:
    """Yield what may break a rule, with the roles of a conversation that breaks it alone."""
    for number, role in enumerate(roles, 1):
        before = roles[number - 2] if number > 1 else None
        if role == "system" and before is None:
            yield (
                ("system", "user", "assistant"),
                "message 1 is a system message, and the template allows none",
            )
        elif role == "system":
            yield (
                ("user", "assistant", "system", "user", "assistant"),
                f"message {number} is a system message, and the template allows one "
                "at the beginning alone. Move it there, or remove it",
            )
        elif role == "assistant" and before in (None, "system"):
            yield (
                ("assistant", "user", "assistant"),
                f"message {number} is an answer, and the template has no place for "
                "an answer before the first question. Remove it, or put a question before it",
            )
        elif role == before and role in _NAMES:
            yield (
                ("user", "assistant", "assistant") if before == "assistant" else _TWICE,
                f"messages {number - 1} and {number} are both {_NAMES[role]}, and the model's "
                "chat template wants both sides to take turns. Join them, or remove one",
            )
