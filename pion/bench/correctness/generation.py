"""Compare cached generation on the card with whole forward passes on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.bench.models import (
    Bench,
    check_model,
    exact_float32,
    largest_difference,
    scrambled,
    twin,
)
from pion.bench.results import Outcome, judged
from pion.config import ModelConfig
from pion.generation.generate import generate
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder

LIMIT = 1e-4
NEW_TOKENS = 16
# By name: a model whose scores and logits are capped, and a model with windows.
KINDS = ("capped", "windowed")


def check_generation(bench: Bench, kind: str) -> Outcome:
    """Generate greedily on the card; compare the logits of each step and the chosen ids.

    The prompt is longer than the window, and the continuation begins inside a block.
    """
    config = _config(kind, bench.tiny)
    model = scrambled(config)
    copy = twin(model, bench.device)
    prompt = torch.randint(config.vocab_size, (config.seq_len * 5 // 8,)).tolist()
    with exact_float32(), torch.no_grad():
        new = list(generate(copy, prompt, stop_ids=(), max_tokens=NEW_TOKENS, temperature=0))
        ids = torch.tensor([prompt + new])
        expected = model(ids)[0, len(prompt) - 1 : -1]
        difference = largest_difference(_cached_logits(copy, ids, len(prompt)), expected)
    chosen = expected.gather(1, ids[0, len(prompt) :, None])[:, 0]
    # The chosen ids are the CPU's too, or as likely except for rounding.
    short = float((expected.amax(dim=1) - chosen).max())
    return judged(
        difference <= LIMIT and short <= LIMIT,
        f"largest difference {difference:.1e}, at most {LIMIT:.0e}; {len(new)} ids",
        difference=difference,
        short_of_likeliest=short,
        limit=LIMIT,
    )


def _config(kind: str, tiny: bool) -> ModelConfig:
    if kind == "capped":
        return check_model("pion", tiny, softcap=20.0, logit_cap=15.0)
    return check_model("daisy", tiny)


def _cached_logits(model: Decoder, ids: Tensor, prompt: int) -> Tensor:
    """Return the logits after the prompt and after each new id but the last, from a cache."""
    cache = KVCache(model.config, max_tokens=ids.shape[1])
    there = ids.to(model.embed.weight.device)
    found = [model(there[:, :prompt], cache=cache)[0, -1]]
    for place in range(prompt, ids.shape[1] - 1):
        found.append(model(there[:, place : place + 1], cache=cache)[0, -1])
    return torch.stack(found)
