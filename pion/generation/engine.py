"""Decode the answers to many requests together, in a thread that owns the model.

Each answer that is being decoded has a slot: a row of the cache. A request that arrives takes a
free slot at the next step, and an answer that ends or whose client has gone frees its slot at the
next step. An answer that is paused, because nobody takes what was drawn, has no slot. Long prompts
are read in pieces, with a step of the other answers after each piece, so they don't stop the others
for long. A free slot keeps what it has read for a prompt that begins so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pion.errors import BadInput
from pion.generation.answer import (
    Answer,
    Busy,
    Closed,
    Deliver,
    Drawn,
    Ended,
    Event,
    Failed,
    Logprobs,
    Scored,
    logprobs_of,
    logprobs_of_prompt,
)
from pion.generation.decoding import Decoding, decoding_of, last_logits
from pion.generation.text import draw_together
from pion.model.decoder import Decoder

# The most tokens of prompts that are read between two steps.
PIECE = 512


class Engine:
    """Answers requests with one model, at most `slots` at once; `queue` more may wait.

    Prompt and answer together have at most `seq_len` tokens, or the model's context if that is
    less. `Text.room` must respect this.

    All that happens to answers is given to `deliver` after each step, on the engine's thread, in
    order: pairs of an answer's listener and an event.
    """

    def __init__(
        self,
        model: Decoder,
        deliver: Deliver,
        *,
        slots: int,
        queue: int,
        seq_len: int,
    ) -> None:
        self._model, self._deliver = model, deliver
        self._slots, self._queue, self._seq_len = slots, queue, seq_len
        self._waiting: deque[Answer] = deque()
        self._reading: _Reading | None = None  # its prompt is read in pieces
        self._arriving: list[Answer] = []  # their prompts are being read together
        self._in_slots: list[Answer] = []  # by the rows of their texts
        self._paused: list[Answer] = []  # they had slots
        self._decoding = self._new_decoding()
        self._events: list[tuple[Answer, Event]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, answers: Sequence[Answer]) -> None:
        """Let the answers be decoded. Raises Busy or Closed, and takes none of them then."""
        with self._changed:
            if self._closed:
                raise Closed(Closed.WHY)
            if len(self._waiting) + len(answers) > self._queue + self._free():
                raise Busy(
                    f"{len(self._in_slots)} answers are being written and {len(self._waiting)} "
                    "requests wait. Try again in a few seconds"
                )
            self._waiting.extend(answers)
            self._changed.notify()

    def resume(self, answers: Sequence[Answer]) -> None:
        """Let paused answers be continued, before those that wait for their first slot."""
        with self._changed:
            for answer in answers:
                answer.paused = False
                if answer in self._paused:
                    self._paused.remove(answer)
                    self._waiting.appendleft(answer)
            self._changed.notify()

    @property
    def capacity(self) -> int:
        """The most answers that can be submitted together."""
        return self._slots + self._queue

    def load(self) -> tuple[int, int]:
        """Return how many answers have slots, and how many wait."""
        with self._changed:
            return self._slots - self._free(), len(self._waiting)

    def close(self) -> None:
        """End all answers as failed, and wait until the thread has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _free(self) -> int:
        return self._slots - len(self._in_slots) - (self._reading is not None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._reading or self._in_slots):
                    self._changed.wait()
                if self._closed:
                    break
            try:
                self._step()
            except Exception as error:  # reported to the clients; the next requests may succeed
                self._fail_all(f"the model failed: {type(error).__name__}: {error}")
            self._send()
        self._fail_all(Closed.WHY)
        self._send()

    def _send(self) -> None:
        """Deliver the events since the last call."""
        events, self._events = self._events, []
        if deliverable := [
            (answer.listener, event) for answer, event in events if not answer.cancelled
        ]:
            self._deliver(deliverable)

    def _step(self) -> None:
        """Read at most one piece of prompts, and draw one token of each answer in a slot."""
        self._forget_cancelled()
        if self._reading is None:
            self._read_short_prompts()
        if self._reading is not None:
            self._read_piece(self._reading)
        if self._in_slots:
            self._decoding.step(self._draw_in)
            self._free_slots()

    def _read_short_prompts(self) -> None:
        """Read the next prompts together, or begin with one that is read alone.

        That is a long one, and one whose beginning has been read before.
        """
        group: list[Answer] = []
        with self._changed:
            while self._waiting and len(group) < self._free():
                answer = self._waiting[0]
                if answer.text.ended and not answer.scores_prompt:  # it asks for no tokens
                    self._events.append((answer, Ended(stopped=False)))
                    self._waiting.popleft()
                    continue
                together = [*(other.text for other in group), answer.text]
                alone = answer.scores_prompt or self._decoding.reusable(answer.text) > 0
                if alone or not self._decoding.fits_together(together, PIECE):
                    if not group:
                        self._reading = _Reading(self._waiting.popleft(), [])
                    break
                group.append(self._waiting.popleft())
        if self._reading is not None:
            answer = self._reading.answer
            cached = self._decoding.begin(answer.text, reuse=not answer.scores_prompt)
            if len(answer.text.ids) == answer.text.given:  # else it was paused
                answer.cached_tokens = cached
        if group:
            self._arriving = group
            logits = self._decoding.read_together([answer.text for answer in group])
            self._in_slots += group
            self._arriving = []
            self._draw(group, logits)
            self._free_slots()

    def _read_piece(self, reading: _Reading) -> None:
        answer, begin = reading.answer, self._decoding.read_of_prompt
        hidden = self._decoding.read_piece(PIECE)
        if answer.scores_prompt:
            following = answer.text.ids[begin + 1 : begin + hidden.shape[1] + 1]
            count = answer.top_logprobs or 0
            reading.scored.extend(logprobs_of_prompt(self._model, hidden[0], following, count))
        if self._decoding.reading is not None:
            return
        self._reading = None
        self._in_slots.append(answer)
        if answer.scores_prompt:
            self._events.append((answer, Scored(reading.scored)))
        if answer.text.ended:  # only its prompt was to be scored
            self._events.append((answer, Ended(stopped=False)))
        else:
            self._draw([answer], last_logits(self._model, hidden))
        self._free_slots()

    def _draw_in(self, rows: Sequence[int], logits: Tensor) -> list[int | None]:
        """Draw the next tokens of slots' answers; return them, and None where an answer is over."""
        answers = [self._in_slots[row] for row in rows]
        self._draw(answers, logits)
        return [None if answer.over else answer.text.ids[-1] for answer in answers]

    def _draw(self, answers: Sequence[Answer], logits: Tensor) -> None:
        """Draw the next token of each answer, from logits (B, vocab)."""
        drawn = draw_together([answer.text for answer in answers], logits)
        for row, (answer, token) in enumerate(zip(answers, drawn, strict=True)):
            if isinstance(token, Exception):  # the other answers are sound
                is_bad_input = isinstance(token, BadInput)
                bug = f"no token could be drawn: {type(token).__name__}: {token}"
                self._fail(answer, str(token) if is_bad_input else bug, asked=is_bad_input)
            else:
                self._report(answer, token, logits[row])

    def _report(self, answer: Answer, token: int | None, logits: Tensor) -> None:
        """Report an answer's drawn token, or its end, with the probabilities it asks for."""
        text, logprobs = answer.text, None
        drawn = text.stop_id if token is None and answer.scores_prompt else token
        if drawn is not None and answer.top_logprobs is not None:
            logprobs = logprobs_of(logits[: text.vocab_size], drawn, answer.top_logprobs)
        if token is not None:
            self._events.append((answer, Drawn(token, logprobs)))
        if text.ended:
            stop = None if token is not None or drawn is None else Drawn(drawn, logprobs)
            self._events.append((answer, Ended(text.stopped, stop)))

    def _forget_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
            self._paused = [answer for answer in self._paused if not answer.cancelled]
        if self._reading is not None and self._reading.answer.cancelled:
            self._decoding.stop_reading()
            self._reading = None
        self._free_slots()

    def _free_slots(self) -> None:
        """Free the slots of answers that are over or paused."""
        # The last answer takes the row of one that leaves, so later rows leave first.
        for row in reversed(range(len(self._in_slots))):
            answer = self._in_slots[row]
            with self._changed:
                if paused := answer.paused and not answer.over:
                    self._paused.append(answer)
            if paused or answer.over:
                self._decoding.leave(row, damaged=answer.failed)
                self._in_slots[row] = self._in_slots[-1]
                self._in_slots.pop()

    def _fail(self, answer: Answer, why: str, *, asked: bool = False) -> None:
        self._events.append((answer, Failed(why, asked)))
        answer.failed = True

    def _fail_all(self, why: str) -> None:
        with self._changed:
            answers = [*self._in_slots, *self._arriving, *self._waiting, *self._paused]
            self._waiting.clear()
            self._paused.clear()
        if self._reading is not None:
            answers.append(self._reading.answer)
        self._reading, self._in_slots, self._arriving = None, [], []
        for answer in answers:  # of those that arrive, some may have a slot or be over
            if not answer.over:
                self._fail(answer, why)
        self._decoding = self._new_decoding()

    def _new_decoding(self) -> Decoding:
        return decoding_of(self._model, self._slots, self._seq_len)


@dataclass(frozen=True)
class _Reading:
    """An answer whose prompt is read in pieces, and what has been found of its tokens."""

    answer: Answer
    scored: list[Logprobs]
