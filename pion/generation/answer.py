"""An answer that the engine decodes, and what can happen to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pion.errors import PionError
from pion.generation.generate import Text
from pion.generation.logprobs import Logprobs


@dataclass(frozen=True)
class Drawn:
    """The next token of an answer, its probability if the request asked, and when it was drawn."""

    token: int
    logprobs: Logprobs | None
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Scored:
    """The probabilities of the prompt's tokens but the first one."""

    logprobs: Sequence[Logprobs]


@dataclass(frozen=True)
class Ended:
    """The answer has ended: by a stop id, or because it has as many tokens as it may.

    `stop` is the stop id with its probability, if the prompt was scored.
    """

    stopped: bool
    stop: Drawn | None = None


@dataclass(frozen=True)
class Failed:
    """The answer can't be continued."""

    why: str


Event = Drawn | Scored | Ended | Failed
Listener = Callable[[Event], None]
Deliver = Callable[[Sequence[tuple[Listener, Event]]], None]


class Busy(PionError):
    """All slots are taken, and as many requests wait as may."""


class Closed(PionError):
    """The engine has been closed."""

    WHY = "the server is stopping"


class Answer:
    """One answer that the engine decodes, from `Engine.submit`."""

    def __init__(
        self,
        text: Text,
        top_logprobs: int | None,
        listener: Listener,
        *,
        scores_prompt: bool = False,
    ) -> None:
        self.text = text
        self.scores_prompt = scores_prompt
        self.top_logprobs = top_logprobs
        self.listener = listener
        self.cancelled = False
        self.failed = False

    @property
    def over(self) -> bool:
        """Whether nothing more is drawn: the answer has ended or failed, or nobody waits for it."""
        return self.cancelled or self.failed or self.text.ended

    def cancel(self) -> None:
        """Let the engine forget the answer at its next step. No more events are delivered."""
        self.cancelled = True
