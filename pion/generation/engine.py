"""Decode the answers to many requests together, in a thread that owns the model.

Each answer that is being decoded has a slot: a row of the cache. A request that arrives takes a
free slot at the next step, and an answer that ends or whose client has gone frees its slot at the
next step. Long prompts are read in pieces, with a step of the other answers after each piece, so
they don't stop the others for long.
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
from pion.generation.generate import cache_tokens, last_logits, next_logits, read_prompts
from pion.model.attention.cache import BatchCache, KVCache
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
        self, model: Decoder, deliver: Deliver, *, slots: int, queue: int, seq_len: int
    ) -> None:
        self._model, self._deliver = model, deliver
        self._slots, self._queue, self._seq_len = slots, queue, seq_len
        self._waiting: deque[Answer] = deque()
        self._reading: _Reading | None = None
        self._arriving: list[Answer] = []  # their prompts are being read, or have just been
        self._in_slots: list[Answer] = []
        self._cache = self._new_cache()
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
        kept = [(answer.listener, event) for answer, event in events if not answer.cancelled]
        if kept:
            self._deliver(kept)

    def _step(self) -> None:
        """Read at most one piece of prompts, and draw one token of each answer in a slot."""
        self._forget_cancelled()
        if self._reading is None:
            self._read_short_prompts()
        if self._reading is not None:
            self._read_piece(self._reading)
        if self._in_slots:
            logits = next_logits(
                self._model, [[answer.text.ids[-1]] for answer in self._in_slots], self._cache
            )
            for row, answer in enumerate(self._in_slots):
                self._draw(answer, logits[row])
            self._free_slots()

    def _read_short_prompts(self) -> None:
        """Read the next prompts together, or begin with one that has more than a piece."""
        group: list[Answer] = []
        with self._changed:
            longest = 0
            while self._waiting and len(group) < self._free():
                answer = self._waiting[0]
                longest = max(longest, len(answer.text.ids))
                alone = answer.scores_prompt or longest > PIECE
                if group and (alone or longest * (len(group) + 1) > PIECE):
                    break
                self._waiting.popleft()
                if answer.text.ended and not answer.scores_prompt:  # it asks for no tokens
                    self._events.append((answer, Ended(stopped=False)))
                elif alone:
                    cache = KVCache(self._model.config, max_tokens=len(answer.text.ids))
                    self._reading = _Reading(answer, cache, [])
                    return
                else:
                    group.append(answer)
        if group:
            self._arriving = group
            prompts = [list(answer.text.ids) for answer in group]
            cache = KVCache(self._model.config, max_tokens=max(len(ids) for ids in prompts))
            logits = read_prompts(self._model, prompts, cache)
            for row, answer in enumerate(group):
                self._take_slot(answer, logits[row], cache, row)
            self._arriving = []

    def _read_piece(self, reading: _Reading) -> None:
        ids = reading.answer.text.ids[reading.cache.length :]
        hidden = cache_tokens(self._model, [ids[:PIECE]], reading.cache)
        answer = reading.answer
        if answer.scores_prompt:
            following, count = ids[1 : PIECE + 1], answer.top_logprobs or 0
            reading.scored.extend(logprobs_of_prompt(self._model, hidden[0], following, count))
        if len(ids) > PIECE:
            return
        if answer.scores_prompt:
            self._events.append((answer, Scored(reading.scored)))
        self._take_slot(answer, last_logits(self._model, hidden)[0], reading.cache, 0)
        self._reading = None

    def _take_slot(self, answer: Answer, logits: Tensor, cache: KVCache, row: int) -> None:
        """Draw an answer's first token, and give the answer a slot if more may follow."""
        length = len(answer.text.ids)
        if answer.text.ended:  # only its prompt was to be scored
            self._events.append((answer, Ended(stopped=False)))
            return
        self._draw(answer, logits)
        if not answer.over:
            self._cache.join(cache, row, length)
            self._in_slots.append(answer)

    def _draw(self, answer: Answer, logits: Tensor) -> None:
        """Draw an answer's next token."""
        text, found = answer.text, None
        try:
            token = text.draw(logits)
            drawn = text.stop_id if token is None and answer.scores_prompt else token
            if drawn is not None and answer.top_logprobs is not None:
                found = logprobs_of(logits[: text.vocab_size], drawn, answer.top_logprobs)
        except Exception as error:  # the other answers are sound
            bug = f"no token could be drawn: {type(error).__name__}: {error}"
            self._fail(answer, str(error) if isinstance(error, BadInput) else bug)
            return
        if token is not None:
            self._events.append((answer, Drawn(token, found)))
        if text.ended:
            stop = None if token is not None or drawn is None else Drawn(drawn, found)
            self._events.append((answer, Ended(text.stopped, stop)))

    def _forget_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
        if self._reading is not None and self._reading.answer.cancelled:
            self._reading = None
        self._free_slots()

    def _free_slots(self) -> None:
        """Free the slots of answers that are over."""
        # The last answer takes the row of one that leaves, so later rows leave first.
        for row in reversed(range(len(self._in_slots))):
            if self._in_slots[row].over:
                self._cache.leave(row)
                self._in_slots[row] = self._in_slots[-1]
                self._in_slots.pop()

    def _fail(self, answer: Answer, why: str) -> None:
        self._events.append((answer, Failed(why)))
        answer.failed = True

    def _fail_all(self, why: str) -> None:
        with self._changed:
            answers = [*self._in_slots, *self._arriving, *self._waiting]
            self._waiting.clear()
        if self._reading is not None:
            answers.append(self._reading.answer)
        self._reading, self._in_slots, self._arriving = None, [], []
        for answer in answers:  # of those that arrive, some may have a slot or be over
            if not answer.over:
                self._fail(answer, why)
        self._cache = self._new_cache()

    def _new_cache(self) -> BatchCache:
        return BatchCache(self._model.config, self._slots, self._seq_len)


@dataclass(frozen=True)
class _Reading:
    """An answer whose long prompt is read in pieces, and what has been read."""

    answer: Answer
    cache: KVCache
    scored: list[Logprobs]


def bytes_per_token(model: Decoder) -> int:
    """Return the bytes that a token's keys and values take in all layers."""
    cache = KVCache(model.config, max_tokens=1)
    cache_tokens(model, [[0]], cache)
    return sum(
        tensor.nbytes
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )
