"""Sample from a decoder, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pion.config import ModelConfig
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.model.cache import KVCache
from pion.model.decoder import Decoder

# A tokenizer decodes bytes that are not a whole character to this.
INCOMPLETE = "\ufffd"

# Where masks are dense, a prompt is read in pieces of this many tokens. Otherwise memory would be
# quadratic in the prompt's length.
PROMPT_PIECE = 1024

# Draws a token id from fp32 logits (vocab,), given the ids so far.
Draw = Callable[[Tensor, Sequence[int]], int]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits; see `sample`.

    Raises BadInput for values that make no sense.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise BadInput(f"temperature is {self.temperature}; use a number, 0 for greedy")
        if self.top_k < 0:
            raise BadInput(f"top_k is {self.top_k}; use 0 for no limit, or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p}; it must be above 0 and at most 1 (no limit)")
        if not 0 < self.repetition_penalty < math.inf:
            raise BadInput(
                f"repetition_penalty is {self.repetition_penalty}; "
                "it must be above 0 (1 has no effect)"
            )


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
    vocab_size: int | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Continue `ids`, yielding each new token id as it is drawn.

    `sample` explains `temperature`, `top_k`, `top_p` and `repetition_penalty`. Generation ends
    before a token of `stop_ids` (usually `[tokenizer.end_of_text]`), after `max_tokens`, or when
    prompt and continuation fill the model's context. Ids of `vocab_size` and above are never drawn,
    because the tokenizer has no such tokens. The same `seed` draws the same tokens. torch's global
    random state is neither read nor changed.

    Raises:
        BadInput: settings make no sense, or the prompt is empty, is longer than the context or
            has ids without an embedding. This is raised by the call, before the first token.
            A model whose predictions are not finite is found at its first such token.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    prompt = _checked_prompt(ids, model.config)
    if max_tokens < 0:
        raise BadInput(f"max_tokens is {max_tokens}; it can't be negative")
    rows = model.config.vocab_size if vocab_size is None else vocab_size
    if not 0 < rows <= model.config.vocab_size:
        raise BadInput(
            f"vocab_size is {rows}; it must be from 1 to the model's {model.config.vocab_size}"
        )
    randomness = _randomness(seed)

    def draw(logits: Tensor, present: Sequence[int]) -> int:
        if not logits.isfinite().all():
            raise BadInput(
                "the model predicts NaN or infinity: its weights or settings are damaged"
            )
        return sample(logits[:rows], sampling, present, randomness)

    limit = min(max_tokens, model.config.seq_len - len(prompt))
    return _generate(model, prompt, limit, draw, frozenset(stop_ids))


def _checked_prompt(ids: Sequence[int], config: ModelConfig) -> list[int]:
    """Return the prompt's ids. Raises BadInput if there are none, or if they don't fit."""
    prompt = [int(token) for token in ids]
    if not prompt:
        raise BadInput("the prompt is empty: start from the tokenizer's end_of_text")
    if len(prompt) > config.seq_len:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens, but the model's context is {config.seq_len} "
            "tokens. Shorten the prompt"
        )
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        raise BadInput(
            f"the prompt has an id outside 0 … {config.vocab_size - 1}, the model's vocabulary: "
            f"was it encoded with a different tokenizer?"
        )
    return prompt


def _randomness(seed: int | None) -> torch.Generator:
    randomness = torch.Generator()
    if seed is None:
        randomness.seed()
    else:
        randomness.manual_seed(seed)
    return randomness


def _generate(
    model: Decoder, ids: list[int], limit: int, draw: Draw, stop_ids: frozenset[int]
) -> Iterator[int]:
    """Yield at most `limit` new ids, and append them to `ids`."""
    cache = KVCache(model.config, max_tokens=len(ids) + limit)
    new = ids
    if _needs_dense_masks(model.config):
        for first in range(0, len(ids) - PROMPT_PIECE, PROMPT_PIECE):
            _hidden(model, ids[first : first + PROMPT_PIECE], cache)
            new = ids[first + PROMPT_PIECE :]
    for _ in range(limit):
        token = draw(_next_logits(model, new, cache), ids)
        if token in stop_ids:
            return
        yield token
        ids.append(token)
        new = [token]


def _needs_dense_masks(config: ModelConfig) -> bool:
    """Return whether attention to a prompt has scores for each pair of tokens at once."""
    return config.softcap is not None or config.windows is not None


# These are separate functions because a generator that is suspended inside inference mode would
# leave its caller in inference mode.
@torch.inference_mode()
def _next_logits(model: Decoder, tokens: list[int], cache: KVCache) -> Tensor:
    """Return fp32 logits (vocab,) on the CPU after the given tokens, and cache these tokens."""
    return model.logits(_hidden(model, tokens, cache)[0, -1]).float().cpu()


@torch.inference_mode()
def _hidden(model: Decoder, tokens: list[int], cache: KVCache) -> Tensor:
    """Cache the given tokens, and return their hidden states (1, T, d_model)."""
    training = model.training
    model.eval()
    try:
        # `torch.tensor(…, device=…)` would wait for the GPU.
        new = torch.tensor([tokens]).to(model.embed.weight.device, non_blocking=True)
        return model.hidden(new, cache=cache)
    finally:
        model.train(training)


def sample(
    logits: Tensor, sampling: Sampling, present: Sequence[int], randomness: torch.Generator
) -> int:
    """Draw one id from fp32 logits (vocab,); `present` has the ids so far.

    1. Logits of ids in `present` are divided by `repetition_penalty` if positive and multiplied by
       it if negative (Keskar et al. 2019, "CTRL").
    2. All logits are divided by `temperature`. A temperature of 0 or less takes the likeliest id.
    3. Ids less likely than the `top_k`-th are left out (Fan et al. 2018, "Hierarchical neural
       story generation"); 0 leaves out none.
    4. With the likeliest id first, all ids are left out from the first one whose cumulative
       probability exceeds `top_p` (after Holtzman et al. 2020, "The curious case of neural text
       degeneration", who still keep that first one). The likeliest id always remains.
    """
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(list({token for token in present if token < len(logits)})).long()
        values = logits[seen]
        penalty = torch.tensor(sampling.repetition_penalty)
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    # With a maximum of 0, logits stay finite at any small temperature.
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
    """Continue a text, yielding pieces of whole characters.

    `settings` are the keywords of `generate`. By default, generation stops at the tokenizer's
    end-of-text and draws only ids that the tokenizer has. Raises what `generate` raises.
    """
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    defaults = {"stop_ids": (tokenizer.end_of_text,), "vocab_size": tokenizer.vocab_size}
    return stream_text(tokenizer, generate(model, ids, **{**defaults, **settings}))


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode ids as they arrive, but hold back the bytes of a character that isn't complete.

    Joined, the pieces are the decoded text. Bytes that never become a character are U+FFFD.
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
