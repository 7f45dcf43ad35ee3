"""Render a model's chat template in another process, with bounds on time and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from pion.bounded_child import BoundedChild, NoAnswer
from pion.data.chat.messages import Conversation
from pion.errors import BadInput

# How long all texts of one conversation may take, in seconds.
SECONDS = 20.0


class Refused(Exception):
    """The template refuses a conversation. The message is the template's."""


@dataclass(frozen=True)
class RenderedTurn:
    """An answer's texts compared with the whole text.

    Each is the number of leading characters that are equal, and what follows in their place.
    """

    prompt: tuple[int, str]  # the text from which the answer is generated
    turn: tuple[int, str]  # the text that ends with the answer


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation, and its turns in the order of the answers asked for."""

    text: str
    turns: Sequence[RenderedTurn]


class Renderer:
    """Renders one template. Each call blocks; a renderer is for one thread.

    The process ends with `close`, at the latest with this object or this process. A text that takes
    too long ends the process, and the next text starts another one.
    """

    def __init__(self, template: str, names: Mapping[str, str], day: date, where: str) -> None:
        """Start the process. `names` are the special tokens by name, and `day` is the date that a
        template writes as today's (Llama 3.2). Errors call the file `where`.

        Raises BadInput if the process can't start.
        """
        self._where = where
        first = first_request(template, names, day)
        self._child = BoundedChild("pion.data.chat.template_worker", first)
        self._answer(self._child.start, "starting the process that renders it")

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def conversation(self, conversation: Conversation, answers: Sequence[int]) -> Rendered:
        """Return the text up to the last of `answers`, and the turn of each.

        Raises:
            Refused: the template refuses this conversation.
            BadInput: the template can't be used: wrong syntax, too much time or memory.
        """
        answer = self._render(conversation, {"answers": list(answers)})
        turns = [
            RenderedTurn((prompt[0], prompt[1]), (turn[0], turn[1]))
            for prompt, turn in answer["turns"]
        ]
        return Rendered(answer["text"], turns)

    def text(self, conversation: Conversation, *, prompt: bool) -> str:
        """Return the text, with `prompt` up to where the next answer begins. Raises as above."""
        return str(self._render(conversation, {"answers": [], "prompt": prompt})["text"])

    def _render(self, conversation: Conversation, options: dict[str, Any]) -> dict[str, Any]:
        request = {"messages": conversation.messages, "tools": conversation.tools, **options}
        request["options"] = conversation.options
        answer = self._exchange(request, conversation.where)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def _exchange(self, request: dict[str, Any], doing: str) -> dict[str, Any]:
        return self._answer(lambda: self._child.ask(request, SECONDS), doing)

    def _answer(self, ask: Callable[[], dict[str, Any]], doing: str) -> dict[str, Any]:
        unusable = f"{self._where}: this chat template can't be used:"
        try:
            answer = ask()
        except NoAnswer as error:
            raise BadInput(f"{unusable} {error} ({doing})") from None
        if "broken" in answer:
            raise BadInput(f"{unusable} {answer['broken']}")
        return answer


def first_request(template: str, names: Mapping[str, str], day: date) -> dict[str, Any]:
    """Return what the process needs to know before it renders a text."""
    return {
        "template": template,
        "date": day.isoformat(),
        "variables": dict(names),
    }
