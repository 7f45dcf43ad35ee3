"""Compare fine-tuning on packed rows with fine-tuning on padded conversations.

A round is one optimizer step of Pion-nano in bf16. All sides train on the same conversations, with
the same target tokens, in the same step, so a step teaches the same on every side; what differs
is only how long a step takes. No forward pass has more than four rows of at most 2,048 tokens, so
the memory is the same, too.

* packed: four rows of Pion's packing, read as training reads them, with positions and documents;
* padded to seq_len: each conversation is a row of 2,048 tokens;
* padded to the longest: four conversations at a time, in random order, and as long as the longest.

Padding is on the right, so causal attention needs no mask of it. This makes the padded sides as
fast as they can be. The lengths are from conversation_lengths.json. While these are a stand-in, the
table says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.comparison import Comparison, Work, alternate, at_least, compare, speed_of
from benchmarks.trainees import NANO, TINY, decoder_of
from pion.data.chat.conversation import Tokenized
from pion.data.chat.packing import pack
from pion.data.shards import IGNORED, Manifest, Row, Rows, describe, flags_path
from pion.data.stream import Batch
from pion.model.decoder import Decoder

ROUNDS, WARMUP = 5, 1
CONVERSATIONS, ROWS = 4096, 4
SEQ_LEN, QUICK_SEQ_LEN = 2048, 256
PAD = 1
# A histogram: `counts[i]` conversations have i · bin + 1 to (i + 1) · bin tokens, and `learned`
# is the share of learned tokens. A stand-in is assumed, not counted.
LENGTHS = Path(__file__).parent / "conversation_lengths.json"
PACKED, FULL, LONGEST = "packed", "padded to seq_len", "padded to the batch's longest"
# What is trained, and how many times as fast packed rows should be.
KINDS: dict[str, float | None] = {PACKED: None, FULL: 3.0, LONGEST: 1.3}


@dataclass(frozen=True)
class Step:
    """The forward passes of one optimizer step, and the number of target tokens."""

    passes: list[Batch]
    targets: int


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison with each kind of padding."""
    config, seq_len = (TINY.config, QUICK_SEQ_LEN) if quick else (NANO.config, SEQ_LEN)
    rounds, warmup = (2, 0) if quick else (ROUNDS, WARMUP)
    lengths = json.loads(LENGTHS.read_text("utf-8"))
    conversations = random_conversations(lengths, config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        rows = packed_rows(conversations, seq_len, config.vocab_size, Path(folder))
        steps = [steps_of(rows, seq_len, seed) for seed in range(rounds + warmup)]
    decoder = decoder_of(config)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-5, fused=True)
    measures = {
        name: speed_of(training_on([step[name] for step in steps], decoder, optimizer))
        for name in KINDS
    }
    speeds = alternate(measures, rounds, warmup)
    for name, target in KINDS.items():
        if target is not None:
            what = (f"fine-tuning, {lengths['kind']} lengths", name, "targets/s")
            details = {"lengths": lengths["what"]}
            yield compare(what, speeds[PACKED], speeds[name], at_least(target), details)


def random_conversations(lengths: dict[str, Any], vocab_size: int) -> list[Tokenized]:
    """Return conversations of random ids, as long as the histogram says. Within a bin, all lengths
    are equally likely. The last tokens are the learned answer."""
    randomness = np.random.default_rng(0)
    shares = np.array(lengths["counts"]) / sum(lengths["counts"])
    bins = randomness.choice(len(shares), size=CONVERSATIONS, p=shares)
    within = randomness.integers(1, lengths["bin"] + 1, size=CONVERSATIONS)
    found, randomness = [], np.random.default_rng(0)
    for length in bins * lengths["bin"] + within:
        ids = randomness.integers(0, vocab_size, size=length, dtype=np.int32)
        question = max(1, round(length * (1 - lengths["learned"])))
        found.append(Tokenized(ids, np.arange(length) >= question))
    return found


def packed_rows(
    conversations: Sequence[Tokenized], seq_len: int, vocab_size: int, folder: Path
) -> list[Row]:
    """Pack the conversations, write them as a shard, and return the rows that training reads."""
    packed = pack(conversations, seq_len, PAD)
    path = folder / "packed.npy"
    np.save(path, packed.ids)
    np.save(flags_path(path), packed.flags)
    shard = describe(path, seq_len)
    rows = Rows(Manifest("conversations", seq_len, vocab_size, (shard,)), lambda shard: path)
    return [rows.row(0, number) for number in range(shard.rows)]


def steps_of(rows: Sequence[Row], seq_len: int, seed: int) -> dict[str, Step]:
    """Return an optimizer step on some of the rows, by kind."""
    randomness = np.random.default_rng(seed)
    chosen = [rows[i] for i in randomness.choice(len(rows), size=ROWS, replace=False)]
    singles = [part for row in chosen for part in conversations_in(row)]
    order = randomness.permutation(len(singles))
    groups = [[singles[i] for i in order[at : at + ROWS]] for at in range(0, len(order), ROWS)]
    passes = {
        PACKED: [packed_batch(chosen)],
        FULL: [padded_batch(group, seq_len) for group in groups],
        LONGEST: [padded_batch(group, max(len(tokens) for tokens, _ in group)) for group in groups],
    }
    steps = {
        kind: Step(batches, sum(int((b.targets != IGNORED).sum()) for b in batches))
        for kind, batches in passes.items()
    }
    if len({step.targets for step in steps.values()}) != 1:
        raise SystemExit("the sides don't learn the same targets")
    return steps


def conversations_in(row: Row) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the tokens and the targets of each conversation of a packed row."""
    assert row.documents is not None
    for document in range(row.documents.max() + 1):
        here = row.documents == document
        yield row.tokens[here], row.targets[here]


def packed_batch(rows: Sequence[Row]) -> Batch:
    """Return packed rows as training sees them."""
    columns = zip(*((row.tokens, row.targets, row.positions, row.documents) for row in rows))
    tokens, targets, positions, documents = (torch.from_numpy(np.stack(c)) for c in columns)
    return Batch(tokens, targets, positions, documents)


def padded_batch(group: Sequence[tuple[np.ndarray, np.ndarray]], length: int) -> Batch:
    """Return a row for each conversation, padded on the right."""
    tokens = torch.full((len(group), length), PAD)
    targets = torch.full((len(group), length), IGNORED)
    for row, (some_tokens, some_targets) in enumerate(group):
        tokens[row, : len(some_tokens)] = torch.from_numpy(some_tokens)
        targets[row, : len(some_targets)] = torch.from_numpy(some_targets)
    return Batch(tokens, targets, None, None)


def training_on(steps: Sequence[Step], decoder: Decoder, optimizer: torch.optim.Optimizer) -> Work:
    """Return the work of a round: an optimizer step, counted in target tokens."""

    def loss_of(batch: Batch) -> Tensor:
        return decoder.loss(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            reduction="sum",
        )

    def work(number: int) -> float:
        step = steps[number]
        for batch in step.passes:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(batch) / step.targets
            loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return step.targets

    return work
