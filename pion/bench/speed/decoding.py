"""Measure how many tokens a second a model generates, for one text and for several at once."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pion.bench.models import Bench
from pion.bench.results import Outcome
from pion.config import ModelConfig
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.train.hardware import pick_dtype, torch_dtype

PROMPT_TOKENS, NEW_TOKENS = 128, 64
WARMUP_TOKENS = 4


def measure_decoding(bench: Bench, config: ModelConfig, texts: int) -> Outcome:
    """Decode `texts` texts in step, as `pion generate` does, with the likeliest ids."""
    prompt, new = (16, 8) if bench.tiny else (PROMPT_TOKENS, NEW_TOKENS)
    torch.manual_seed(0)
    dtype = pick_dtype("auto", bench.device, generating=True)
    weights = Decoder(config).state_dict()
    model = Decoder.from_state(config, weights, torch_dtype(dtype)).to(bench.device).eval()
    model.join_projections()
    ids = torch.randint(config.vocab_size, (texts, prompt)).to(bench.device)
    cache = KVCache(config, max_tokens=prompt + WARMUP_TOKENS + new)
    with torch.inference_mode():
        started = time.perf_counter()
        ids = _next(model, ids, cache)
        _wait(bench)
        first = time.perf_counter() - started
        for _ in range(WARMUP_TOKENS):
            ids = _next(model, ids, cache)
        _wait(bench)
        started = time.perf_counter()
        for _ in range(new - 1):
            ids = _next(model, ids, cache)
        _wait(bench)
    seconds = time.perf_counter() - started
    speed = texts * (new - 1) / seconds
    return Outcome(
        "measured",
        f"{speed:,.0f} tokens/s, {1000 * seconds / (new - 1):.1f} ms a token, {dtype}",
        {
            "texts": texts,
            "tokens_per_second": speed,
            "first_token_seconds": first,
            "dtype": dtype,
        },
    )


def _next(model: Decoder, ids: Tensor, cache: KVCache) -> Tensor:
    hidden = model.hidden(ids, cache=cache)
    return model.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)


def _wait(bench: Bench) -> None:
    if bench.on_cuda:
        torch.cuda.synchronize(bench.device)
