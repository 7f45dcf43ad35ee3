"""Measure bytes per token of vocabularies of several sizes, trained on several amounts of text.

    uv run python -m benchmarks.vocabulary

The text is the prose and the source of Python's standard library. A tenth of its documents is held
out, and bytes per token are those of the held-out text. A smaller amount is a part of a larger one.
Writes benchmarks/results/vocabulary.json.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.tokenizing import some_texts
from pion.data.tokens.tokenizer import train_bpe

RESULT = Path(__file__).parent / "results" / "vocabulary.json"
SIZES = (1024, 2048, 4096, 8192, 16_384, 32_768)
MEGABYTES = (0.3, 3.0, 30.0)


def size_of(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def first(texts: list[str], megabytes: float) -> list[str]:
    """Return the first texts that have so many megabytes together, or all."""
    found, size = [], 0
    for text in texts:
        if size >= megabytes * 1e6:
            break
        found.append(text)
        size += len(text.encode())
    return found


def measure(training: list[str], held_out: list[str], vocab_size: int) -> dict[str, float]:
    """Return the entries that a vocabulary has, and its bytes per token."""
    tokenizer = train_bpe(training, vocab_size)
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(held_out))
    return {
        "asked": vocab_size,
        "entries": tokenizer.vocab_size,
        "bytes_per_token": round(size_of(held_out) / tokens, 3),
    }


def main() -> None:
    texts = some_texts(quick=False)
    random.Random(0).shuffle(texts)
    held_out, rest = texts[: len(texts) // 10], texts[len(texts) // 10 :]
    rows = []
    for megabytes in MEGABYTES:
        training = first(rest, megabytes)
        found = {"megabytes": round(size_of(training) / 1e6, 2)}
        rows.append(found | {"sizes": [measure(training, held_out, size) for size in SIZES]})
    report = {"held_out_megabytes": round(size_of(held_out) / 1e6, 2), "trained_on": rows}
    text = json.dumps(report, indent=1) + "\n"
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
