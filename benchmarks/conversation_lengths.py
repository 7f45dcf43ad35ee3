"""The lengths of fine-tuning conversations, as a histogram in conversation_lengths.json.

    uv run python -m benchmarks.conversation_lengths FILE.jsonl --source TEXT

This command counts the histogram of a data set such as OpenHermes-2.5, and replaces the file. The
file's `what` and `source` say where the committed histogram is from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.exported import TOKENIZER
from pion.data.chat.conversation import Tokenized, tokenize_batch
from pion.data.chat.messages import turns_of
from pion.data.documents.file_to_documents import Span, jsonl_records
from pion.data.records.layouts import read_chat
from pion.data.tokens.tokenizer import Tokenizer

FILE = Path(__file__).parent / "conversation_lengths.json"
BIN, BINS = 64, 64


@dataclass(frozen=True)
class Lengths:
    """A histogram: `counts[i]` conversations have from i · bin + 1 to (i + 1) · bin tokens.

    Longer conversations are in the last bin. `learned` is the share of learned tokens. A stand-in
    is assumed, not counted.
    """

    kind: Literal["measured", "stand-in"]
    what: str
    source: str
    bin: int
    learned: float
    counts: list[int]

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Return `count` lengths in tokens. Within a bin, all lengths are equally likely."""
        randomness = np.random.default_rng(seed)
        shares = np.array(self.counts) / sum(self.counts)
        bins = randomness.choice(len(self.counts), size=count, p=shares)
        return bins * self.bin + randomness.integers(1, self.bin + 1, size=count)


def read() -> Lengths:
    """Return the committed histogram."""
    return Lengths(**json.loads(FILE.read_text()))


def write(lengths: Lengths) -> None:
    """Replace the committed histogram."""
    FILE.write_text(json.dumps(asdict(lengths)) + "\n")


def random_conversations(lengths: Lengths, count: int, vocab_size: int) -> list[Tokenized]:
    """Return conversations of random ids. The last tokens are the learned answer."""
    randomness = np.random.default_rng(0)
    found = []
    for length in lengths.draw(count, seed=0):
        ids = randomness.integers(0, vocab_size, size=length, dtype=np.int32)
        question = max(1, round(length * (1 - lengths.learned)))
        found.append(Tokenized(ids, np.arange(length) >= question))
    return found


def tokenized(path: Path, tokenizer: Tokenizer, most: int | None) -> Iterator[Tokenized]:
    """Yield the conversations of JSON Lines as training tokenizes them."""
    records = islice(jsonl_records([Span(path)], "FILE"), most)
    while chunk := list(islice(records, 1000)):
        yield from tokenize_batch(
            tokenizer, [turns_of(read_chat(record.value, record.origin)) for record in chunk]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--most", type=int, help="read only the first rows")
    parser.add_argument("--source", required=True, help="the data set and its revision")
    options = parser.parse_args()
    counts, tokens, learned = [0] * BINS, 0, 0
    for ids, mask in tokenized(options.file, Tokenizer.from_file(options.tokenizer), options.most):
        counts[min((len(ids) - 1) // BIN, BINS - 1)] += 1
        tokens, learned = tokens + len(ids), learned + int(mask.sum())
    what = f"{sum(counts):,} conversations, tokenized by {options.tokenizer.name}"
    write(Lengths("measured", what, options.source, BIN, round(learned / tokens, 4), counts))


if __name__ == "__main__":
    main()
