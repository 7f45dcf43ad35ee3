"""Continue texts token by token: from a prompt's ids to new ids, and from ids to text.

Several texts are continued together: the weights, whose reading takes the time, are read once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.generation.bounds import check
from pion.generation.grammar import Grammar
from pion.generation.sampling import Sampling, sample
from pion.generation.text_stream import TextStream
from pion.model.attention.cache import BatchCache, KVCache
from pion.model.decoder import Decoder

# Where masks are dense, a prompt is read in pieces of this many tokens. Otherwise memory would be
# quadratic in the prompt's length.
PROMPT_PIECE = 1024
ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """How a text is continued: the keywords of `generate`, which explains them."""

    stop_ids: Iterable[int]
    max_tokens: int = 128
    vocab_size: int | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check("max_tokens", self.max_tokens)
        check("seed", self.seed or 0)
        for value in (self.logit_bias or {}).values():
            check("logit_bias", value)


class Text:
    """A text that is being continued.

    Attributes:
        ids: the ids of the prompt, and the new ids.
        room: how many ids there may be in all.
        vocab_size: ids below it can be drawn.
        stop_id: the stop id that was drawn, or None.

    Raises BadInput for settings that make no sense, and for a prompt that doesn't fit.
    """

    def __init__(self, model: Decoder, ids: Sequence[int], settings: Settings) -> None:
        self.ids = checked_prompt(ids, model.config)
        self._given = len(self.ids)
        rows = model.config.vocab_size
        self.vocab_size = rows if settings.vocab_size is None else settings.vocab_size
        if not 0 < self.vocab_size <= rows:
            raise BadInput(
                f"vocab_size is {self.vocab_size}; it must be from 1 to the model's {rows}"
            )
        self._sampling = settings
        self._bias = self._bias_of(settings.logit_bias)
        self._grammar = settings.grammar and settings.grammar.copy()
        self._stop_ids = frozenset(settings.stop_ids)
        self._randomness = torch.Generator()
        if settings.seed is None:
            self._randomness.seed()
        else:
            self._randomness.manual_seed(settings.seed)
        self.room = min(len(self.ids) + settings.max_tokens, model.config.seq_len)
        self.stop_id: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop id was drawn, or the grammar allows nothing more."""
        complete = self._grammar is not None and self._grammar.complete
        return self.stop_id is not None or complete

    @property
    def ended(self) -> bool:
        """Whether nothing follows: a stop id was drawn, or the text has as many ids as it may."""
        return self.stopped or len(self.ids) >= self.room

    def draw(self, logits: Tensor) -> int | None:
        """Draw the next id from fp32 logits (vocab,), and add it; None: the text ends before it.

        Raises BadInput if the logits are not finite.
        """
        if not logits.isfinite().all():
            raise BadInput(
                "the model predicts NaN or infinity: its weights or settings are damaged"
            )
        logits = logits[: self.vocab_size]
        if self._bias is not None:
            logits = logits.index_add(0, *self._bias)
        if self._grammar is not None:
            logits = logits.masked_fill(~self._allowed(self._grammar), -math.inf)
        token = sample(logits, self._sampling, self.ids, self._randomness, self._given)
        if token in self._stop_ids:
            self.stop_id = token
            return None
        if self._grammar is not None:
            self._grammar.take(token)
        self.ids.append(token)
        return token

    def _allowed(self, grammar: Grammar) -> Tensor:
        """Return which ids may be drawn, (vocab,) bool. Raises BadInput if there are none."""
        found = grammar.allowed()
        if grammar.may_end:
            found[[token for token in self._stop_ids if token < len(found)]] = True
        if not found.any():
            raise BadInput("the schema allows no token here")
        return found

    def _bias_of(self, bias: Mapping[int, float] | None) -> tuple[Tensor, Tensor] | None:
        """Return the ids and what is added to their logits. Raises BadInput for other ids."""
        if not bias:
            return None
        ids, last = list(bias), self.vocab_size - 1
        wrong = next((token for token in ids if not 0 <= token <= last), None)
        if wrong is not None:
            raise BadInput(f"logit_bias has the id {wrong}; the tokenizer's are from 0 to {last}")
        return torch.tensor(ids), torch.tensor(list(bias.values()), dtype=torch.float32)


# Users call this function with the settings as keywords, so it has more parameters than most.
def generate(
    model: Decoder,
    ids: Sequence[int],
    *,
    stop_ids: Iterable[int],
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.9,
    repetition_penalty: float = 1.0,
    min_p: float = 0.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    vocab_size: int | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Continue `ids`, yielding each new token id as it is drawn.

    `sample` explains `temperature`, `top_k`, `top_p`, `min_p` and the penalties. `logit_bias` is
    added to the logits of ids before all of them: 100 all but forces an id, and -100 all but
    forbids it. Generation ends before a token of `stop_ids` (usually `[tokenizer.end_of_text]`;
    `SpecialTokens` has those of other people's models), after `max_tokens`, or when prompt and
    continuation fill the model's context. Ids of `vocab_size` and above are never drawn, because
    the tokenizer has no such tokens. The same `seed` draws the same tokens. torch's global random
    state is neither read nor changed.

    Raises:
        BadInput: settings make no sense, or the prompt is empty, is longer than the context or
            has ids without an embedding. This is raised by the call, before the first token.
            A model whose predictions are not finite is found at its first such token.
    """
    settings = Settings(
        stop_ids=stop_ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        vocab_size=vocab_size,
        seed=seed,
    )
    return _continued(model, Text(model, ids, settings))


def _continued(model: Decoder, text: Text) -> Iterator[int]:
    if text.ended:
        return
    cache = KVCache(model.config, max_tokens=text.room)
    token = text.draw(read_prompts(model, [text.ids], cache)[0])
    while token is not None:
        yield token
        if text.ended:
            return
        token = text.draw(next_logits(model, [[token]], cache)[0])


def read_prompts(model: Decoder, prompts: list[list[int]], cache: KVCache) -> Tensor:
    """Cache the prompts, a row for each; return the fp32 logits (B, vocab) after each, on the CPU.

    A lone prompt may have any length. Of several, the shorter ones are filled up at their end:
    attention is causal, so no token of a prompt sees what fills it up.
    """
    # Such a model's attention has scores for each pair of tokens of a prompt at once.
    dense = model.config.softcap is not None or model.config.windows is not None
    if len(prompts) == 1 and dense:
        (ids,) = prompts
        while len(ids) > PROMPT_PIECE:
            cache_tokens(model, [ids[:PROMPT_PIECE]], cache)
            ids = ids[PROMPT_PIECE:]
        prompts = [ids]
    longest = max(len(ids) for ids in prompts)
    filled = [ids + [0] * (longest - len(ids)) for ids in prompts]
    return next_logits(model, filled, cache, [len(ids) for ids in prompts])


# These are separate functions because a generator that is suspended inside inference mode would
# leave its caller in inference mode.
@torch.inference_mode()
def next_logits(
    model: Decoder,
    rows: list[list[int]],
    cache: KVCache | BatchCache,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Cache the tokens of each row; return the fp32 logits after them, (B, vocab) on the CPU.

    With `lengths`, only so many tokens of each row count.
    """
    return last_logits(model, cache_tokens(model, rows, cache), lengths)


@torch.inference_mode()
def last_logits(model: Decoder, hidden: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Return the fp32 logits after hidden states (B, T, d_model), (B, vocab) on the CPU.

    With `lengths`, only so many tokens of each row count.
    """
    if lengths is None:
        return model.logits(hidden[:, -1]).float().cpu()
    last = torch.tensor([length - 1 for length in lengths]).to(hidden.device, non_blocking=True)
    every = torch.arange(len(lengths), device=hidden.device)
    return model.logits(hidden[every, last]).float().cpu()


@torch.inference_mode()
def cache_tokens(model: Decoder, rows: list[list[int]], cache: KVCache | BatchCache) -> Tensor:
    """Cache the tokens of each row, and return their hidden states (B, T, d_model)."""
    # `torch.tensor(…, device=…)` would wait for the GPU.
    new = torch.tensor(rows).to(model.embed.weight.device, non_blocking=True)
    return model.hidden(new, cache=cache)


def checked_prompt(ids: Sequence[int], config: ModelConfig) -> list[int]:
    """Return the prompt's ids. Raises BadInput if there are none, or if they don't fit."""
    prompt = [int(token) for token in ids]
    if not prompt:
        raise BadInput("the prompt is empty: start with `tokenizer.prompt(text)`")
    if len(prompt) > config.seq_len:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens, but the model's context is "
            f"{config.seq_len} tokens. Shorten the prompt"
        )
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        raise BadInput(
            f"the prompt has an id outside 0 … {config.vocab_size - 1}, the model's "
            "vocabulary: was it encoded with a different tokenizer?"
        )
    return prompt


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode ids as they arrive, but hold back the bytes of a character that isn't complete.

    Joined, the pieces are the decoded text. Bytes that never become a character are U+FFFD.
    """
    stream = TextStream(tokenizer)
    for token in ids:
        if text := stream.push(token).text:
            yield text
    if text := stream.end().text:
        yield text


def generate_batch(
    model: Decoder, prompts: Sequence[Sequence[int]], *, rows: int = ROWS, **settings: Any
) -> Iterator[tuple[int, int | None]]:
    """Continue each of `prompts`: yield (the prompt's number from 0, its next new id).

    When a text has ended, None is its next id. At most `rows` texts are continued at once; when one
    ends, the next prompt takes its row. `settings` are the keywords of `pion.generate`; with a
    `seed`, each text is drawn as if it were alone. In fp32, a text is what `pion.generate` yields,
    except where two ids are equally likely up to rounding.

    Raises what `pion.generate` raises, before the first id.
    """
    if rows < 1:
        raise BadInput(f"rows is {rows}; it must be at least 1")
    texts = [Text(model, ids, Settings(**settings)) for ids in prompts]
    return _continued_batch(model, texts, min(rows, len(texts)))


def _continued_batch(
    model: Decoder, texts: list[Text], rows: int
) -> Iterator[tuple[int, int | None]]:
    cache = BatchCache(model.config, rows, max((text.room for text in texts), default=0))
    waiting = deque(enumerate(texts))
    in_rows: list[tuple[int, Text]] = []
    while waiting or in_rows:
        while waiting and len(in_rows) < rows:
            group = _next_group(waiting, rows - len(in_rows))
            prompts = [list(text.ids) for _, text in group]
            read = KVCache(model.config, max_tokens=max(len(ids) for ids in prompts))
            logits = read_prompts(model, prompts, read)
            for row, (number, text) in enumerate(group):
                yield from _drawn(number, text, logits[row])
                if not text.ended:
                    cache.join(read, row, len(prompts[row]))
                    in_rows.append((number, text))
        if in_rows:
            logits = next_logits(model, [[text.ids[-1]] for _, text in in_rows], cache)
            for row, (number, text) in enumerate(in_rows):
                yield from _drawn(number, text, logits[row])
            # The last text takes the row of a text that has ended, so later rows leave first.
            for row in reversed(range(len(in_rows))):
                if in_rows[row][1].ended:
                    cache.leave(row)
                    in_rows[row] = in_rows[-1]
                    in_rows.pop()


def _next_group(waiting: deque[tuple[int, Text]], most: int) -> list[tuple[int, Text]]:
    """Take the texts from `waiting` that are read together: at least one, and at most `most`."""
    group = [waiting.popleft()]
    longest = len(group[0][1].ids)
    while waiting and len(group) < most:
        longest = max(longest, len(waiting[0][1].ids))
        if longest * (len(group) + 1) > PROMPT_PIECE:
            break
        group.append(waiting.popleft())
    return group


def _drawn(number: int, text: Text, logits: Tensor) -> Iterator[tuple[int, int | None]]:
    token = None if text.ended else text.draw(logits)
    if token is not None:
        yield number, token
    if text.ended:
        yield number, None
