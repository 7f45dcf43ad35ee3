"""Render a model's chat template in another process, with bounds on time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import ceil
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from pion.data.chat.messages import Conversation
from pion.errors import BadInput

# How long the process may take to start, and for all texts of one conversation, in seconds.
START_SECONDS, SECONDS = 120.0, 20.0
# What the process gets of the environment: no keys and tokens.
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


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
        self._first = first_request(template, names, day)
        self._process, self._connection, self._end = _start(self)
        self._introduce()

    def close(self) -> None:
        """End the process."""
        self._end()

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

    def _render(self, conversation: Conversation, asked: dict[str, Any]) -> dict[str, Any]:
        request = {"messages": conversation.messages, "tools": conversation.tools, **asked}
        request["options"] = conversation.options
        answer = self._exchange(request, SECONDS, conversation.where)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def _introduce(self) -> None:
        self._exchange(self._first, START_SECONDS, "starting the process that renders it")

    def _exchange(self, request: dict[str, Any], seconds: float, doing: str) -> dict[str, Any]:
        if self._connection.closed:  # an earlier text took too long, and its process was ended
            self._process, self._connection, self._end = _start(self)
            self._introduce()
        try:
            self._connection.send_bytes(json.dumps(request, default=str).encode())
            if not self._connection.poll(seconds):
                self.close()
                raise BadInput(
                    f"{self._where}: this chat template can't be used: it took more than "
                    f"{seconds:g} s ({doing})"
                )
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self.close()
            raise BadInput(
                f"{self._where}: this chat template can't be used: the process that renders it "
                f"ended ({doing})"
            ) from None
        if "broken" in answer:
            raise BadInput(f"{self._where}: this chat template can't be used: {answer['broken']}")
        return answer


def first_request(template: str, names: Mapping[str, str], day: date) -> dict[str, Any]:
    """Return what the process needs to know before it renders a text."""
    return {
        "template": template,
        "date": day.isoformat(),
        "variables": dict(names),
        "most_seconds": ceil(SECONDS) + 5,
    }


def _start(
    renderer: Renderer,
) -> tuple[subprocess.Popen[bytes], Connection, Callable[[], object]]:
    """Return a process that ends with its renderer, the connection to it, and what ends it."""
    ours, theirs = Pipe()
    command = [sys.executable, "-P", "-m", "pion.data.chat.template_worker", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what it has to say is in its answers
            start_new_session=True,  # so that a Ctrl-C reaches only the process that asks
        )
    return process, ours, weakref.finalize(renderer, _end, process, ours)


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()
