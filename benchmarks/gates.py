"""Measure what gates save and cost: bits per byte by the share of skipped layers, and speed.

The text is the held-out prose of Python's standard library, and the model one that learned gates on
it:

    pion run jobs/demo.yaml && pion run jobs/demo-gates.yaml
    python -m benchmarks.gates models/demo-gates

  * `thresholds`: of five confidences, the share of feed-forward layers that they skip, the bits per
    byte, and the share of all multiplications that is saved;
  * `decoding`: tokens/s of one text and of 16, with gates and without, interleaved, as a ratio of
    medians;
  * `reliability`: tokens by the confidence of a layer's gate. Of one token in ten, that layer alone
    is skipped, and the loss of these tokens' predictions rises by so many nats in the mean.

The result is written to benchmarks/results/gates.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import pion
from pion.data.documents.python_docs import documents, is_held_out
from pion.data.tokens.tokenizer import Tokenizer
from pion.model.block import Block
from pion.model.decoder import Decoder
from pion.model.feedforward.gates import Gate
from pion.model.params_and_flops import cost_of

RESULT = Path(__file__).parent / "results" / "gates.json"
HELD_OUT = 0.05  # as in jobs/demo.yaml
ROWS, ROWS_AT_ONCE = 192, 16
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the layers of all tokens, which a threshold skips
BINS = 5  # of a layer's tokens by confidence, with equally many tokens
PROBED = 0.1  # of the tokens, for the reliability
TEXTS, PROMPT_TOKENS, NEW_TOKENS, REPEATS = (1, 16), 32, 96, 5


def rows_of_text(tokenizer: Tokenizer, length: int) -> Tensor:
    """Return rows of held-out text, (ROWS, length + 1)."""
    ids: list[int] = []
    for document in documents():
        if is_held_out(document.origin, HELD_OUT):
            ids += [tokenizer.end_of_text, *tokenizer.encode(document.text)]
    whole = torch.tensor(ids[: len(ids) // (length + 1) * (length + 1)])
    return whole.view(-1, length + 1)[:ROWS]


def losses(model: Decoder, rows: Tensor) -> Tensor:
    """Return the loss of each target (ROWS, length) in nats."""
    found = []
    with torch.no_grad():
        for some in rows.split(ROWS_AT_ONCE):
            logits = model(some[:, :-1]).float()
            found.append(cross_entropy(logits.mT, some[:, 1:], reduction="none"))
    return torch.cat(found)


def gates_of(model: Decoder) -> list[Gate]:
    """Return the gate of each layer."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    return [block.gate for block in blocks if block.gate is not None]


@contextmanager
def watched(model: Decoder) -> Iterator[list[list[Tensor]]]:
    """Collect the confidences of each layer's gate, of one batch after the other."""
    seen: list[list[Tensor]] = [[] for _ in model.blocks]
    hooks = [
        gate.register_forward_hook(lambda _, x, logits, of=of: of.append(logits.sigmoid()))
        for gate, of in zip(gates_of(model), seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def bits_per_byte(of_tokens: Tensor, size: int) -> float:
    """Return the bits per byte of text that has `size` bytes."""
    return float(of_tokens.double().sum() / torch.log(torch.tensor(2.0)) / size)


def by_threshold(model: Decoder, rows: Tensor, size: int) -> list[dict[str, float]]:
    """Return what each of five thresholds skips, costs and saves."""
    model = model.with_gates(1.0)
    with watched(model) as seen:
        base = bits_per_byte(losses(model, rows), size)
    every = torch.cat([torch.cat(of) for of in seen]).flatten()
    of_feedforward = sum(
        block.feedforward.macs_per_token() for block in model.blocks if isinstance(block, Block)
    )
    saved = of_feedforward / cost_of(model.config).macs_per_token
    found = []
    for share in SHARES:
        threshold = every.quantile(1 - share).item()
        model = model.with_gates(threshold)
        with watched(model) as seen:
            measured = bits_per_byte(losses(model, rows), size)
        confidences = torch.cat([torch.cat(of) for of in seen])
        skipped = (confidences > threshold).float().mean().item()
        found.append(
            {
                "skip_above": round(threshold, 4),
                "skipped": round(skipped, 4),
                "bits_per_byte": round(measured, 4),
                "more_than_without": round(measured - base, 4),
                "multiplications_saved": round(skipped * saved, 4),
            }
        )
        print(found[-1], flush=True)
    return found


class Forced(torch.nn.Module):
    """Says which tokens are skipped, in place of a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return a large logit for each skipped token (B, T)."""
        return torch.where(self.skipped, 100.0, -100.0)


def reliability(model: Decoder, rows: Tensor) -> list[list[dict[str, float]]]:
    """Return of each layer, for tokens by confidence: what skipping this layer alone costs."""
    model = model.with_gates(1.0)
    with watched(model) as seen:
        base = losses(model, rows)
    chance = torch.Generator().manual_seed(0)
    probed = torch.rand(base.shape, generator=chance) < PROBED
    found = []
    for layer, block in enumerate(model.blocks):
        forced = [Forced() for _ in model.blocks]
        parts = []
        probe = model.with_gates(0.5)
        for other, by in zip(probe.blocks, forced, strict=True):
            other.gate = by
        with torch.no_grad():
            pairs = zip(rows.split(ROWS_AT_ONCE), probed.split(ROWS_AT_ONCE), strict=True)
            for some, here in pairs:
                for number, by in enumerate(forced):
                    by.skipped = here if number == layer else torch.zeros_like(here)
                logits = probe(some[:, :-1]).float()
                parts.append(cross_entropy(logits.mT, some[:, 1:], reduction="none"))
        assert isinstance(block, Block)
        costs = (torch.cat(parts) - base)[probed]
        confidences = torch.cat(seen[layer])[probed]
        order = confidences.argsort().tensor_split(BINS)
        found.append(
            [
                {
                    "confidence": round(confidences[bin_].mean().item(), 4),
                    "loss_rises_by": round(costs[bin_].mean().item(), 4),
                    "sem": round(costs[bin_].std().item() / len(bin_) ** 0.5, 4),
                }
                for bin_ in order
            ]
        )
        print(f"layer {layer}: {found[-1]}", flush=True)
    return found


def seconds_to_decode(model: Decoder, prompts: Sequence[Sequence[int]]) -> float:
    """Return how long it takes to continue all prompts by NEW_TOKENS."""
    started = time.perf_counter()
    for _ in pion.generate_batch(model, prompts, stop_ids=[], max_tokens=NEW_TOKENS, temperature=0):
        pass
    return time.perf_counter() - started


def decoding(model: Decoder, rows: Tensor, thresholds: Sequence[float]) -> list[dict[str, float]]:
    """Return the tokens/s with each threshold, as a ratio of those without gates."""
    found = []
    for texts in TEXTS:
        prompts = rows[:texts, :PROMPT_TOKENS].tolist()
        taken: dict[float | None, list[float]] = {}
        for _ in range(REPEATS):
            for threshold in (None, *thresholds):
                by = model if threshold is None else model.with_gates(threshold)
                taken.setdefault(threshold, []).append(seconds_to_decode(by, prompts))
        base = statistics.median(taken[None])
        for threshold in thresholds:
            ratio = base / statistics.median(taken[threshold])
            found.append(
                {"texts": texts, "skip_above": threshold, "tokens_per_second": round(ratio, 3)}
            )
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="the folder of a model with gates")
    options = parser.parse_args()
    model, tokenizer = pion.load(options.model)
    assert tokenizer is not None
    rows = rows_of_text(tokenizer, model.config.seq_len)
    size = sum(len(tokenizer.decode(row[1:].tolist()).encode()) for row in rows)
    thresholds = by_threshold(model, rows, size)
    report: dict[str, Any] = {
        "model": Path(options.model).name,
        "rows": len(rows),
        "threads": torch.get_num_threads(),
        "thresholds": thresholds,
        "reliability": reliability(model, rows),
        "decoding": decoding(model, rows, [each["skip_above"] for each in thresholds]),
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
