"""An answer that the engine decodes, what can happen to it, and how likely its tokens were."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pion.errors import PionError
from pion.generation.text import Text
from pion.model.decoder import Decoder

# The logits of so many positions of a prompt are in memory at once.
ROWS = 64


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
    """The answer can't be continued. With `asked`, because of what was asked for."""

    why: str
    asked: bool = False


Event = Drawn | Scored | Ended | Failed
Listener = Callable[[Event], None]
Deliver = Callable[[Sequence[tuple[Listener, Event]]], None]


class Busy(PionError):
    """All slots are taken, and as many requests wait as may."""


class Closed(PionError):
    """The engine has been closed."""

    WHY = "the server is stopping"


@dataclass(eq=False)
class Answer:
    """One answer that the engine decodes, from `Engine.submit`."""

    text: Text
    top_logprobs: int | None
    listener: Listener
    scores_prompt: bool = field(default=False, kw_only=True)
    cached_tokens: int = field(default=0, init=False)  # of the prompt, which were not read again
    cancelled: bool = field(default=False, init=False)
    paused: bool = field(default=False, init=False)
    failed: bool = field(default=False, init=False)

    @property
    def over(self) -> bool:
        """Whether nothing more is drawn: the answer has ended or failed, or nobody waits for it."""
        return self.cancelled or self.failed or self.text.ended

    def pause(self) -> None:
        """Let the engine take the answer's slot from it at its next step, until `Engine.resume`."""
        # The probabilities of a prompt would be computed, and delivered, again.
        self.paused = not self.scores_prompt

    def cancel(self) -> None:
        """Let the engine forget the answer at its next step. No more events are delivered."""
        self.cancelled = True


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities, before temperature and the other settings.

    Attributes:
        drawn: that of the drawn token.
        top: the likeliest ids with theirs, the likeliest first.
    """

    drawn: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits: Tensor, token: int, count: int) -> Logprobs:
    """Return the log-probability of `token` and of the `count` likeliest ids, from (vocab,)."""
    return _of_rows(logits[None].cpu(), [token], count)[0]


@torch.inference_mode()
def logprobs_of_prompt(
    model: Decoder, hidden: Tensor, following: Sequence[int], count: int
) -> list[Logprobs]:
    """Return the log-probability of each id that follows hidden states (T, d_model)."""
    logprobs: list[Logprobs] = []
    for begin in range(0, len(following), ROWS):
        ids = following[begin : begin + ROWS]
        logprobs += _of_rows(
            model.logits(hidden[begin : begin + len(ids)]).float().cpu(), ids, count
        )
    return logprobs


def _of_rows(logits: Tensor, ids: Sequence[int], count: int) -> list[Logprobs]:
    every = logits.log_softmax(dim=-1)
    drawn = every.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    values, top = every.topk(min(count, every.shape[1]))
    rows = zip(drawn, top.tolist(), values.tolist(), strict=True)
    return [Logprobs(logprob, tuple(zip(*likeliest, strict=True))) for logprob, *likeliest in rows]
