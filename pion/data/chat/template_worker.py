"""A process that renders a chat template for template_renderer.py, and does nothing else.

A template is a program of others. transformers' sandbox keeps it from the attributes of objects,
but not from endless loops or gigabytes of text. So this process has little memory and no secrets
in its environment, and is killed if it takes too long (bounded_child.py).
"""

from __future__ import annotations

import datetime
import random
from bisect import bisect_left
from typing import Any

from pion.bounded_child import Message, limit_memory, requests

# The memory that rendering may add to that of transformers, in bytes.
MEMORY = 1 << 30
# The longest rendered text, in characters.
LONGEST_TEXT = 32 << 20
# The most characters of a template's own error message.
_MESSAGE_CHARS = 300


class Rendering:
    """The template, and the variables that are the same in every text."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render = render_jinja_template
        self._template = settings["template"]
        day = datetime.datetime.combine(
            datetime.date.fromisoformat(settings["date"]), datetime.time()
        )
        # A variable that is passed hides the sandbox's own, which would tell today's date.
        self._variables = settings["variables"] | {"strftime_now": day.strftime}

    def text(self, request: dict[str, Any], upto: int | None, *, prompt: bool) -> str:
        """Return the text of the first messages, with `prompt` up to where an answer begins."""
        random.seed(0)  # jinja has a filter that chooses at random
        rendered: Any = self._render(
            [request["messages"][:upto]],
            tools=request["tools"],
            chat_template=self._template,
            add_generation_prompt=prompt,
            **(self._variables | request["options"]),
        )
        text: str = rendered[0][0]
        if len(text) > LONGEST_TEXT:
            raise MemoryError
        return text

    def answers(self, request: dict[str, Any]) -> Message:
        """Return the whole text, and where each answer's prompt and turn differ from it.

        Each answer has two pairs: how many characters the text before the answer has in common
        with the whole text, and what follows them; and the same of the text with the answer.
        """
        last = request["answers"][-1]
        rendered = self.text(request, last + 1, prompt=False)
        turns = []
        for answer in request["answers"]:
            prompt = self.text(request, answer, prompt=True)
            turn = rendered if answer == last else self.text(request, answer + 1, prompt=False)
            turns.append([_compared(prompt, rendered), _compared(turn, rendered)])
        return {"text": rendered, "turns": turns}


def _compared(text: str, longer: str) -> tuple[int, str]:
    """Return how many leading characters are equal, and the rest of `text`."""
    if longer.startswith(text):  # nearly always
        return len(text), ""
    # The first n of which n + 1 leading characters differ.
    same = bisect_left(range(len(text)), True, key=lambda n: not longer.startswith(text[: n + 1]))
    return same, text[same:]


def answer_to(rendering: Rendering, request: dict[str, Any]) -> Message:
    """Return the answer to a request: texts, or why there are none.

    `refused` is about this conversation, `broken` about the template.
    """
    try:
        if request["answers"]:
            return rendering.answers(request)
        return {"text": rendering.text(request, None, prompt=request["prompt"])}
    except MemoryError:
        return {"broken": f"it needs more than {MEMORY >> 20:,} MB, or writes an endless text"}
    except Exception as error:  # a template can raise anything
        from jinja2.exceptions import SecurityError, TemplateSyntaxError

        message = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS]
        if isinstance(error, TemplateSyntaxError):
            return {"broken": f"line {error.lineno}: {message}"}
        if isinstance(error, SecurityError):
            return {"broken": f"the sandbox refused it: {message}"}
        return {"refused": message}


def main() -> None:
    """Answer requests until the other side closes the pipe."""
    calls = requests()
    settings, reply = next(calls)
    try:
        rendering = Rendering(settings)
        limit_memory(MEMORY)
    except Exception as error:  # transformers can't be imported, for example
        reply({"broken": f"{error!r}"[:_MESSAGE_CHARS]})
        return
    reply({})
    for request, reply in calls:
        reply(answer_to(rendering, request))


if __name__ == "__main__":
    main()
