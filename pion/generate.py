"""Sampling from a decoder, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.model.cache import KVCache
from pion.model.decoder import Decoder

END_OF_TEXT = 0
"""The end-of-text id of the tokenizers trained here and of the seeds' own."""

INCOMPLETE = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits; see `generate`. Raises BadInput if it can't."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise BadInput(f"temperature is {self.temperature}; give a number, 0 for greedy")
        if self.top_k < 0:
            raise BadInput(f"top_k is {self.top_k}; give 0 for no limit, or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p}; it must be above 0 and at most 1 (no limit)")
        if not 0 < self.repetition_penalty < math.inf:
            raise BadInput(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 is none)"
            )


def generate(
    model: Decoder,
    ids: Sequence[int],
    *,
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.9,
    repetition_penalty: float = 1.0,
    stop_ids: Iterable[int] = (END_OF_TEXT,),
    vocab_size: int | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Continue `ids`, yielding each new token id as it is drawn.

    Logits of ids already present are divided by `repetition_penalty` where positive and multiplied
    where negative; then divided by `temperature` (0 or less: the likeliest token, no drawing); then
    only ids at least as likely as the `top_k`-th remain (0: all), and of those, likeliest first,
    the ones whose cumulative probability stays within `top_p`, but always the first.

    Ends before yielding one of `stop_ids`, after `max_tokens`, or when prompt and continuation fill
    the model's context. An empty prompt starts from end-of-text. Ids of `vocab_size` and above,
    embedding rows the tokenizer lacks, are never drawn. The same `seed` draws the same tokens;
    torch's global random state is neither read nor changed.

    Raises:
        BadInput: settings that make no sense, a prompt longer than the context or with ids the
            model has no embedding for. Raised by the call, before the first token is asked for.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    config = model.config
    prompt = [int(token) for token in ids] or [END_OF_TEXT]
    if max_tokens < 0:
        raise BadInput(f"max_tokens is {max_tokens}; it can't be negative")
    if len(prompt) > config.seq_len:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens, more than the model's context of "
            f"{config.seq_len}: shorten it"
        )
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        raise BadInput(
            f"the prompt has an id outside 0 … {config.vocab_size - 1}, the model's vocabulary: "
            f"was it encoded by another tokenizer?"
        )
    rows = config.vocab_size if vocab_size is None else vocab_size
    if not 0 < rows <= config.vocab_size:
        raise BadInput(f"vocab_size is {rows}; the model's is {config.vocab_size}")
    limit = min(max_tokens, config.seq_len - len(prompt))
    return _generate(model, prompt, limit, sampling, frozenset(stop_ids), rows, seed)


def _generate(
    model: Decoder,
    ids: list[int],
    limit: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    vocab_size: int,
    seed: int | None,
) -> Iterator[int]:
    randomness = torch.Generator()
    if seed is None:
        randomness.seed()
    else:
        randomness.manual_seed(seed)
    cache = KVCache(model.config, max_tokens=len(ids) + limit)
    new = ids
    for _ in range(limit):
        logits = _next_logits(model, new, cache)[:vocab_size]
        token = sample(logits, sampling, ids, randomness)
        if token in stop_ids:
            return
        yield token
        ids.append(token)
        new = [token]


@torch.inference_mode()
def _next_logits(model: Decoder, tokens: list[int], cache: KVCache) -> Tensor:
    """fp32 logits (vocab,) on the CPU after the given tokens, which the cache then holds.

    One call per token: a generator suspended inside inference mode would leave its caller in it.
    """
    training = model.training
    model.eval()
    try:
        device = model.embed.weight.device
        hidden = model.hidden(torch.tensor([tokens], device=device), cache=cache)
        return model.logits(hidden[0, -1]).float().cpu()
    finally:
        model.train(training)


def sample(
    logits: Tensor, sampling: Sampling, present: Sequence[int], randomness: torch.Generator
) -> int:
    """Draw one id from fp32 logits (vocab,) as `generate` describes."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(list({token for token in present if token < len(logits)})).long()
        values = logits[seen]
        penalty = torch.tensor(sampling.repetition_penalty)
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    # Shifted to a maximum of 0, logits stay finite however small the temperature.
    logits = (logits - logits.max()) / sampling.temperature
    count = sampling.top_k if 0 < sampling.top_k < len(logits) else len(logits)
    kept = (logits >= logits.topk(count).values[-1]).nonzero().squeeze(1)
    ordered, order = logits[kept].sort(descending=True, stable=True)
    candidates, probabilities = kept[order], ordered.softmax(dim=0)
    if sampling.top_p < 1:
        within = int((probabilities.cumsum(dim=0) <= sampling.top_p).sum())
        probabilities = probabilities[: max(1, within)]
    return int(candidates[torch.multinomial(probabilities, 1, generator=randomness)])


def generate_text(
    model: Decoder, tokenizer: Tokenizer, prompt: str, **settings: Any
) -> Iterator[str]:
    """Continue a text, yielding pieces of whole characters; `settings` are those of `generate`.

    Stops at the tokenizer's end-of-text, and draws only ids the tokenizer has, unless `settings`
    say otherwise. Raises what `generate` raises.
    """
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    defaults = {"stop_ids": (tokenizer.end_of_text,), "vocab_size": tokenizer.vocab_size}
    return stream_text(tokenizer, generate(model, ids, **{**defaults, **settings}))


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode ids as they come, holding back the bytes of a character that isn't whole yet.

    Joined, the pieces are the decoded ids; bytes that never become a character are U+FFFD in them.
    """
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = tokenizer.decode(pending)
        if text and not text.endswith(INCOMPLETE):
            yield text
            pending = []
    if text := tokenizer.decode(pending):
        yield text
