"""Documents to training rows: encoded on all cores, joined by end-of-text, cut into shards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.data.tokens.tokenizer import Tokenizer
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.prepared import SPLITS, write_manifest
from pipeline.machine.kill_points import mark
from pipeline.machine.time_limit import attended_items

BATCH_BYTES = 4 << 20
Split = TypeVar("Split")


@dataclass(frozen=True)
class RowFormat:
    """How rows are cut. `key` identifies the sources and the tokenizer (see ShardWriter)."""

    seq_len: int
    shard_rows: int
    key: str


def write_text_rows(
    texts: Iterable[tuple[bool, str]],
    tokenizer: Tokenizer,
    folder: Path,
    rows: RowFormat,
    what: str,
    say: Say,
) -> dict[str, Any]:
    """Write the shards of both splits below `folder` and return what was counted.

    Documents in shards that an interrupted call finished are read but not encoded again.
    Raises BadInput if a shard can't be written.
    """
    splits = Splits(tokenizer.vocab_size, folder, rows)
    encoded_bytes, seconds = 0, 0.0

    def look() -> None:
        say(PrepareProgress(what, splits.bytes / 1e6, "MB"))

    found = attended_items(batches(splits.not_yet_written(texts)), look)
    for batch, ids, size, took in _encoded(found, tokenizer):
        encoded_bytes, seconds = encoded_bytes + size, seconds + took
        for (split, _), document in zip(batch, ids, strict=True):
            splits.append(split, document, tokenizer)
        look()
    report = splits.finish()
    if seconds:
        report["mb_per_second"] = round(encoded_bytes / 1e6 / seconds, 2)
    return report


class Splits:
    """The shards of the training and held-out rows of one source, and its counts.

    Attributes:
        documents, bytes: what was counted so far.
        writers: what writes the shards of each split.
    """

    def __init__(self, vocab_size: int, folder: Path, rows: RowFormat) -> None:
        self.documents = self.bytes = 0
        self._vocab_size, self._folder, self._rows = vocab_size, folder, rows
        self.writers = {
            split: ShardWriter(
                folder / split,
                seq_len=rows.seq_len,
                vocab_size=vocab_size,
                rows_per_shard=rows.shard_rows,
                key=rows.key,
            )
            for split in SPLITS
        }

    def not_yet_written(self, texts: Iterable[tuple[bool, str]]) -> Iterator[tuple[str, str]]:
        """Count every document; yield the split and text of each that is in no finished shard."""
        to_skip = {split: writer.appended for split, writer in self.writers.items()}
        for held_out, text in texts:
            split = "held_out" if held_out else "train"
            self.documents += 1
            self.bytes += len(text.encode())
            if to_skip[split]:
                to_skip[split] -= 1
            else:
                yield split, text

    def append(self, split: str, ids: list[int], tokenizer: Tokenizer) -> None:
        """Write a document; a shard is written when it is full."""
        writer = self.writers[split]
        finished = len(writer.shards)
        started = tokenizer.start_document(ids) if ids else ids
        writer.append_document(started, tokenizer.end_of_text)
        if len(writer.shards) > finished:
            mark("shard")

    def finish(self) -> dict[str, Any]:
        """Write the last shards and the manifests; return what was counted."""
        report: dict[str, Any] = {"documents": self.documents, "bytes": self.bytes}
        for split, writer in self.writers.items():
            mark("shard")
            shards = writer.finish()
            mark("shard")
            manifest = Manifest("tokens", self._rows.seq_len, self._vocab_size, shards)
            report |= write_manifest(self._folder, split, manifest)
        return report


def batches(
    documents: Iterable[tuple[Split, str]], characters: int = BATCH_BYTES
) -> Iterator[list[tuple[Split, str]]]:
    """Yield the documents in batches of about so many `characters`."""
    batch, size = [], 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterable[list[tuple[str, str]]], tokenizer: Tokenizer
) -> Iterator[tuple[list[tuple[str, str]], list[list[int]], int, float]]:
    """Yield (batch, ids, bytes, seconds) of each batch, while the next batch is encoded."""

    def encode(
        batch: list[tuple[str, str]],
    ) -> tuple[list[tuple[str, str]], list[list[int]], int, float]:
        started = time.monotonic()
        ids = tokenizer.encode_batch([text for _, text in batch])
        took = time.monotonic() - started
        return batch, ids, sum(len(text.encode()) for _, text in batch), took

    with ThreadPoolExecutor(1) as pool:
        submitted = (pool.submit(encode, batch) for batch in batches)
        waiting = list(islice(submitted, 1))
        while waiting:
            waiting += islice(submitted, 1)  # it is encoded while the caller writes this one
            yield waiting.pop(0).result()
