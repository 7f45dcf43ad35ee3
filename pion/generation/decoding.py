"""Continue several texts together, each in a row of one cache: the loop of all generation.

Rows in use stand before the others. A row that is not in use keeps what its last text has read: a
text that begins like it takes the row and reads only what is new. So the next turn of a
conversation does not read the conversation again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pion.generation.step_graphs import StepGraphs
from pion.generation.text import Text
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder

# What draws the next tokens of some rows; see `Decoding.step`.
DrawRows = Callable[[Sequence[int], Tensor], Sequence[int | None]]

# A shorter beginning is read again.
LEAST_REUSED = 16
# Where masks are dense, a prompt is read in pieces of this many tokens. Otherwise memory would be
# quadratic in the prompt's length.
PROMPT_PIECE = 1024


class Decoding:
    """Texts that one model continues together: at most `rows`, of at most `max_tokens` each.

    Attributes:
        texts: those whose prompts have been read, by their rows.
        reading: the text whose prompt is being read. It has the row after them.
        graphs: the CUDA graphs of steps of one token.
    """

    def __init__(self, model: Decoder, rows: int, max_tokens: int) -> None:
        self.model = model
        self.texts: list[Text] = []
        self.reading: Text | None = None
        self._cache = KVCache(model.config, min(max_tokens, model.config.seq_len), rows)
        self.graphs = StepGraphs(model, self._cache)
        # Of each row, the ids that it has keys and values of; and when it was used last.
        self._read: list[list[int]] = [[] for _ in range(rows)]
        self._used = [0] * rows
        self._time = 0

    @property
    def free(self) -> int:
        """How many more texts have room."""
        return len(self._read) - len(self.texts) - (self.reading is not None)

    @property
    def read_of_prompt(self) -> int:
        """How many tokens of the prompt that is being read have been read."""
        return len(self._read[len(self.texts)])

    # ------------------------------------------------------------ prompts

    def fits_together(self, texts: Sequence[Text], most: int) -> bool:
        """Return whether the prompts are read in one pass of at most `most` tokens."""
        longest = max(len(text.ids) for text in texts)
        return longest * len(texts) <= most and longest <= self._cache.most_together

    def reusable(self, text: Text) -> int:
        """Return how many tokens of a text need not be read. The last one always is."""
        return max((self._common(row, text.ids) for row in range(len(self._read))), default=0)

    def read_together(self, texts: Sequence[Text]) -> Tensor:
        """Read the prompts in one pass; return the fp32 logits (B, vocab) after each.

        The shorter ones are filled up at their end: attention is causal, so no token of a prompt
        sees what fills it up.
        """
        first = len(self.texts)
        for row in range(first, first + len(texts)):
            self._empty(row)
        prompts = [text.ids for text in texts]
        longest = max(len(ids) for ids in prompts)
        filled = [ids + [0] * (longest - len(ids)) for ids in prompts]
        hidden = cache_tokens(self.model, filled, self._cache, first)
        for row, ids in enumerate(prompts, first):
            self._cache.cut(row, len(ids))
            self._read[row] = list(ids)
            self._begun(texts[row - first], hidden[row - first, len(ids) - 1])
        return last_logits(self.model, hidden, [len(ids) for ids in prompts])

    def begin(self, text: Text, *, reuse: bool = True) -> int:
        """Give the text a row, and return how many of its tokens have been read before.

        `read_piece` reads the others.
        """
        rows = range(len(self._read))
        best = max(rows, key=lambda row: (self._common(row, text.ids), -self._used[row]))
        common = self._common(best, text.ids) if reuse else 0
        row = len(self.texts)
        if common < LEAST_REUSED:
            self._empty(row)
            common = 0
        elif best < row:  # it is in use
            self._empty(row)
            self._cache.copy(best, row, common)
            self._read[row] = self._read[best][:common]
        else:
            self._swap(best, row)
            self._cache.cut(row, common)
            self._read[row] = self._read[row][:common]
        self.reading = text
        return common

    def read_alone(self, text: Text) -> Tensor:
        """Read a whole prompt; return the fp32 logits (1, vocab) after it."""
        self.begin(text, reuse=False)
        config = self.model.config
        # Such a model's attention has scores for each pair of tokens of a prompt at once.
        dense = config.softcap is not None or config.hides_in(len(text.ids))
        while self.reading is not None:
            hidden = self.read_piece(PROMPT_PIECE if dense else None)
        return last_logits(self.model, hidden)

    def read_piece(self, most: int | None = None) -> Tensor:
        """Read the next tokens of the text's prompt; return their hidden states (1, T, d_model).

        When the whole prompt has been read, the text is among the `texts`.
        """
        assert self.reading is not None
        text, row = self.reading, len(self.texts)
        ids = text.ids[len(self._read[row]) :][:most]
        hidden = cache_tokens(self.model, [ids], self._cache, row)
        self._read[row] = self._read[row] + ids
        if len(self._read[row]) == len(text.ids):
            self._begun(text, hidden[0, -1])
            self.reading = None
        return hidden

    def _begun(self, text: Text, state: Tensor) -> None:
        """Add a text whose prompt was read. `state` (d_model,) predicts its first new token."""
        self.texts.append(text)

    # ------------------------------------------------------------ new tokens

    def step(self, draw: DrawRows) -> None:
        """Continue each text by one token.

        `draw` gets rows, and the fp32 logits (len(rows), vocab) after their texts. It draws the
        next token of each text and adds it to the text. In its result, None says that no more
        tokens follow.
        """
        rows = [[text.ids[-1]] for text in self.texts]
        _, logits = self._pass(rows)
        draw(range(len(rows)), logits[:, 0])
        for read, ids in zip(self._read, rows):
            read += ids

    def _pass(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Read the next tokens of all texts; return hidden states and logits, each (B, T, …)."""
        graphed = self.graphs.step([ids[0] for ids in rows]) if len(rows[0]) == 1 else None
        if graphed is not None:
            return graphed
        hidden = cache_tokens(self.model, rows, self._cache)
        return hidden, every_logits(self.model, hidden)

    def leave(self, row: int, *, damaged: bool = False) -> None:
        """Free the row of a text. The last text takes it.

        What the text has read stays until the row is needed, unless it may be `damaged`.
        """
        last = len(self.texts) - 1
        if damaged:
            self._cache.clear(row)
            self._read[row] = []
        self._time += 1
        self._used[row] = self._time if self._read[row] else 0
        self._swap(row, last)
        self.texts[row] = self.texts[last]
        self.texts.pop()
        if self.reading is not None:  # it stands after the others
            self._swap(last, last + 1)

    def stop_reading(self) -> None:
        """Free the row of the text whose prompt is being read."""
        row, self.reading = len(self.texts), None
        self._time += 1
        self._used[row] = self._time if self._read[row] else 0

    # ------------------------------------------------------------ rows

    def _empty(self, row: int) -> None:
        """Empty a row. What it has read moves to the free row that was used least recently."""
        oldest = min(range(row, len(self._read)), key=lambda free: self._used[free])
        if oldest != row:
            self._cache.copy(row, oldest, self._cache.lengths[row])
            self._read[oldest], self._used[oldest] = self._read[row], self._used[row]
        self._cache.cut(row, 0)
        self._read[row] = []

    def _common(self, row: int, ids: Sequence[int]) -> int:
        """Return how many of the ids but the last a row has read, and still has all it needs of."""
        read, most = self._read[row], min(len(self._read[row]), len(ids) - 1)
        count = next((n for n in range(most) if read[n] != ids[n]), most)
        return count if self._cache.can_cut(row, count) else 0

    def _swap(self, one: int, other: int) -> None:
        self._cache.swap(one, other)
        self._read[one], self._read[other] = self._read[other], self._read[one]
        self._used[one], self._used[other] = self._used[other], self._used[one]


def decoding_of(model: Decoder, rows: int, max_tokens: int) -> Decoding:
    """Return what continues texts of the model: what the model has for it, or a Decoding."""
    decoding: Decoding = (model.decoding or Decoding)(model, rows, max_tokens)
    return decoding


# These are separate functions because a generator that is suspended inside inference mode would
# leave its caller in inference mode.
@torch.inference_mode()
def cache_tokens(
    model: Decoder, rows: Sequence[Sequence[int]], cache: KVCache, first: int = 0
) -> Tensor:
    """Cache the tokens of each row from `first` on; return their hidden states (B, T, d_model)."""
    # `torch.tensor(…, device=…)` would wait for the GPU.
    return model.hidden(
        torch.tensor(rows).to(model.embed.weight.device, non_blocking=True), cache=cache, row=first
    )


@torch.inference_mode()
def last_logits(model: Decoder, hidden: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Return the fp32 logits after hidden states (B, T, d_model), (B, vocab).

    With `lengths`, only so many tokens of each row count.
    """
    if lengths is None:
        return of_rank_0(model, model.logits(hidden[:, -1]).float())
    last = torch.tensor([length - 1 for length in lengths]).to(hidden.device, non_blocking=True)
    every = torch.arange(len(lengths), device=hidden.device)
    return of_rank_0(model, model.logits(hidden[every, last]).float())


@torch.inference_mode()
def every_logits(model: Decoder, hidden: Tensor) -> Tensor:
    """Return the fp32 logits after hidden states (B, T, d_model), (B, T, vocab).

    Those of several tokens (T > 1) are on the CPU: the host draws several times, and must not wait
    for the GPU each time.
    """
    logits = of_rank_0(model, model.logits(hidden).float())
    return logits if logits.shape[1] == 1 else logits.cpu()


def of_rank_0(model: Decoder, logits: Tensor) -> Tensor:
    """Return the logits of rank 0, if ranks compute together with a sharded model.

    GPUs of different types differ in the last bits. All ranks must draw the same ids: a rank that
    ended a text before the others would leave them waiting.
    """
    if not model.sharded:
        return logits
    logits = logits.contiguous()
    dist.broadcast(logits, src=0)
    return logits


def bytes_per_row(model: Decoder, max_tokens: int) -> int:
    """Return the bytes that the keys and values of a text of so many tokens take in all layers."""
    cache = KVCache(model.config, max_tokens)
    cache_tokens(model, [[0]], cache)
    return cache.bytes_per_row()
