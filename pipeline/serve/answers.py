"""Decode the answers to one request, and yield their text as it can be sent."""

from __future__ import annotations

import asyncio
import time
from collections import ChainMap
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pion.data.chat.tool_call_form import Call
from pion.generation.answer import (
    Answer,
    Busy,
    Closed,
    Drawn,
    Ended,
    Event,
    Failed,
    Scored,
)
from pion.generation.answer_reader import AnswerReader, Reading
from pion.generation.text import Text
from pion.generation.text_stream import Piece, TextStream
from pipeline.models.program_parts import PROGRAM_PARTS
from pipeline.serve.errors import ApiError
from pipeline.serve.served_model import ServedModel

# An answer is paused while its client has yet to take more events than this.
MOST_UNSENT = 64
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Part:
    """What is new in one of the answers.

    Attributes:
        choice: the number of the answer, counted from 0.
        text: the text that follows; it may be empty.
        tokens: the tokens that begin in this text.
        finish_reason: why the answer has ended, in its last part.
        thought: what follows of the thoughts before the text.
        calls: the calls of tools that end in this part.
    """

    choice: int
    text: str
    tokens: Sequence[Drawn]
    finish_reason: FinishReason | None
    thought: str = ""
    calls: Sequence[Call] = ()


def joined(parts: Sequence[Part]) -> Part:
    """Return all parts of one answer as one."""
    tokens = [token for part in parts for token in part.tokens]
    text, thought = ("".join(part) for part in zip(*((p.text, p.thought) for p in parts)))
    calls = [call for part in parts for call in part.calls]
    return Part(parts[-1].choice, text, tokens, parts[-1].finish_reason, thought, calls)


class Answers:
    """The answers to one request, from `begin` until `close`.

    Attributes:
        prompt_tokens: the number of tokens in the prompts; a prompt of several answers counts once.
        choices: the number of answers.
    """

    def __init__(
        self,
        served: ServedModel,
        texts: Sequence[Text],
        prompt_tokens: int,
        reading: Reading,
        top_logprobs: int | None,
        echoes: Sequence[str] = (),
    ) -> None:
        """Begin with `echoes`, the texts of the prompts; their tokens have probabilities, too."""
        self.prompt_tokens, self.choices = prompt_tokens, len(texts)
        self._served = served
        self._echoes = echoes
        self._scores = bool(echoes) and top_logprobs is not None
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._paused = False
        self._answers = [
            Answer(text, top_logprobs, partial(self._put, number), scores_prompt=self._scores)
            for number, text in enumerate(texts)
        ]
        # The first answer to each prompt.
        self._firsts = [i for i, text in enumerate(texts) if not i or text.ids != texts[i - 1].ids]
        how = reading.stops, reading.marks, reading.continues
        self._streams = [TextStream(served.tokenizer, *how) for _ in texts]
        self._readers = [AnswerReader(reading) for _ in texts]
        self._tokens: list[list[Drawn]] = [[] for _ in texts]
        # When the answers were asked for, and when their first and last tokens were drawn.
        self._begun = self._first = self._last = time.monotonic()

    @property
    def completion_tokens(self) -> int:
        """The number of tokens that were drawn."""
        return sum(len(tokens) for tokens in self._tokens)

    @property
    def cached_tokens(self) -> int:
        """The number of tokens of the prompts that an earlier text had, so they were not read."""
        return sum(self._answers[number].cached_tokens for number in self._firsts)

    @property
    def timings(self) -> dict[str, Any]:
        """What the answers took until now, where tokens are drawn, as llama.cpp names it.

        `prompt_n` are the tokens of the prompts, of which `cache_n` were not read again, and
        `prompt_ms` is from the request until the first token, with the wait for a slot.
        `predicted_n` are the tokens that were drawn, and `predicted_ms` is from the first to the
        last token. `predicted_per_second` are the tokens in that time, without each answer's first;
        None: only firsts.
        """
        drawn = [len(tokens) for tokens in self._tokens if tokens]
        seconds = self._last - self._first
        # Each answer's first token comes from reading its prompt.
        after_first = sum(drawn) - len(drawn)
        return {
            "prompt_n": self.prompt_tokens,
            "cache_n": self.cached_tokens,
            "prompt_ms": 1000 * (self._first - self._begun),
            "predicted_n": sum(drawn),
            **ChainMap(
                *(part.timings(self._answers, self._tokens) for part in PROGRAM_PARTS.values())
            ),
            "predicted_ms": 1000 * seconds,
            "predicted_per_second": after_first / seconds if seconds and after_first else None,
        }

    def begin(self) -> None:
        """Ask the engine for the answers. Raises ApiError if it can't take them, or not now."""
        most = self._served.engine.capacity
        if len(self._answers) > most:
            raise ApiError(
                400,
                f"{len(self._answers)} answers were asked for, and this server takes {most}",
                param="n",
            )
        try:
            self._served.engine.submit(self._answers)
        except Busy as error:
            raise ApiError(429, str(error), code="server_busy") from None
        except Closed as error:
            raise ApiError(503, str(error), code="shutting_down") from None

    async def parts(self) -> AsyncIterator[Part]:
        """Yield the parts of all answers until all have ended.

        Raises ApiError if an answer can't be continued.
        """
        open_choices = set(range(len(self._answers)))
        if not self._scores:
            for number, text in enumerate(self._echoes):
                yield Part(number, text, [], None)
        while open_choices:
            number, event = await self._events.get()
            if self._paused and self._events.empty():
                self._paused = False
                self._served.engine.resume(self._answers)
            if number in open_choices:
                part = self._part(number, event)
                if part.finish_reason is not None:
                    open_choices.remove(number)
                if part.text or part.tokens or part.finish_reason is not None:
                    yield part

    def close(self) -> None:
        """Free the slots of answers that have not ended."""
        for answer in self._answers:
            answer.cancel()

    def _put(self, number: int, event: Event) -> None:
        self._events.put_nowait((number, event))
        if self._events.qsize() > MOST_UNSENT * len(self._answers):
            self._paused = True
            for answer in self._answers:
                answer.pause()

    def _part(self, number: int, event: Event) -> Part:
        stream, tokens = self._streams[number], self._tokens[number]
        if isinstance(event, Failed):
            stopping = event.why == Closed.WHY
            status = 503 if stopping else 400 if event.asked else 500
            raise ApiError(status, event.why, code="shutting_down" if stopping else None)
        if isinstance(event, Ended):
            part = self._with_tokens(number, stream.end(), "stop" if event.stopped else "length")
            return part if event.stop is None else replace(part, tokens=[*part.tokens, event.stop])
        if isinstance(event, Scored):
            ids = self._answers[number].text.ids
            found = [None, *event.logprobs]
            return Part(number, self._echoes[number], list(map(Drawn, ids, found)), None)
        assert isinstance(event, Drawn)
        if self.completion_tokens == 0:
            self._first = event.at
        self._last = event.at
        tokens.append(event)
        piece = stream.push(event.token)
        if stream.stopped:
            self._answers[number].cancel()
        return self._with_tokens(number, piece, "stop" if stream.stopped else None)

    def _with_tokens(self, number: int, piece: Piece, reason: FinishReason | None) -> Part:
        tokens = [self._tokens[number][i] for i in piece.tokens]
        reader = self._readers[number]
        text, thought, calls = reader.push(piece.text, end=reason is not None)
        if reason == "stop" and reader.called:
            reason = "tool_calls"
        return Part(number, text, tokens, reason, thought, calls)
