"""Compare a model's logits on the card with those on the CPU, in fp32 without TF32."""

from __future__ import annotations

import torch

from pion.bench.models import (
    Bench,
    check_model,
    exact_float32,
    largest_difference,
    scrambled,
    twin,
)
from pion.bench.results import Outcome, judged

LIMIT = 1e-4
ROWS = 2


def check_logits(bench: Bench, family: str) -> Outcome:
    """Compare the logits of rows of text and of rows of several documents."""
    config = check_model(family, bench.tiny)
    model = scrambled(config)
    copy = twin(model, bench.device)
    tokens = torch.randint(config.vocab_size, (ROWS, config.seq_len))  # seeded by `scrambled`
    places = torch.arange(config.seq_len)
    # Documents of different lengths, whose ends are inside the blocks of a window.
    documents = places * torch.tensor([[5], [3]]) // config.seq_len
    worst = {}
    with exact_float32(), torch.no_grad():
        for rows, numbers in (("text", None), ("documents", documents)):
            expected = model(tokens, documents=numbers)
            there = None if numbers is None else numbers.to(bench.device)
            found = copy(tokens.to(bench.device), documents=there)
            worst[rows] = largest_difference(found, expected)
    largest = max(worst.values(), key=lambda value: (value != value, value))
    return judged(
        all(value <= LIMIT for value in worst.values()),
        f"largest difference {largest:.1e}, at most {LIMIT:.0e}",
        **worst,
        limit=LIMIT,
    )
