"""Takes shards that were tokenised elsewhere: checks and hashes them, but does not change them.

The last 1 % of the rows is held out. Local files are hard-linked into the data folder, or copied if
they are on another disk. Files on the Hub stay there and are fetched during training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.arrays import check_ids, open_shard
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Shard, describe, split_tail
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.files import make_folder, unwritable
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.hub import hub_shards, read_hub_rows
from pipeline.data.prepared import counts_of
from pipeline.data.sources import Input
from pipeline.data.splits import RowFormat
from pipeline.job import BinShards, HubNpyShards, NpyShards
from pipeline.machine.kill_points import mark
from pipeline.state.workspace import link_or_copy

# Ids that are searched at once, and all ids that are searched in a source on the Hub.
IDS_AT_ONCE = 2**22
REMOTE_IDS = 2**20


def check_documents(inputs: Sequence[Input], tokenizer: Tokenizer, seq_len: int) -> None:
    """Check that each tokenized source contains the end-of-text that begins a document.

    Text that Pion tokenizes needs no check: an end-of-text follows each of its documents.

    Raises BadInput for the first source without an end-of-text, and for a file that isn't a shard.
    """
    for source_input in inputs:
        source = source_input.source
        if isinstance(source, NpyShards | BinShards):
            ids, searched = _local_ids(source_input, seq_len), source.path
        elif isinstance(source, HubNpyShards):
            shards = hub_shards(source, source_input.commit, seq_len)
            ids = (rows for _, rows in _first_rows(shards, -(-REMOTE_IDS // seq_len), seq_len))
            searched = f"the first {REMOTE_IDS:,} ids of {source.repo}"
        else:
            continue
        if not any((chunk == tokenizer.end_of_text).any() for chunk in ids):
            raise BadInput(
                f"{source_input.key}: there is no end-of-text ({tokenizer.end_of_text_token}, id "
                f"{tokenizer.end_of_text:,}) in {searched}, so data.documents can't tell where a "
                "document begins. No shard was prepared. Use the tokenizer that made these shards, "
                "put an end-of-text between their documents, or set data.documents=false."
            )


def _local_ids(found: Input, seq_len: int) -> Iterator[np.ndarray]:
    """Yield the ids of all rows, (n, seq_len) at a time."""
    step = max(1, IDS_AT_ONCE // seq_len)
    for path in found.files:
        rows = open_shard(path, seq_len)
        for first in range(0, len(rows), step):
            yield rows[first : first + step]


def _first_rows(
    shards: Sequence[Shard], left: int, seq_len: int
) -> Iterator[tuple[Shard, np.ndarray]]:
    """Yield the first `left` rows on the Hub: each shard with the ids of its rows."""
    for shard in shards:
        if left > 0:
            rows = read_hub_rows(shard, left, seq_len)
            left -= len(rows)
            yield shard, rows


HELD_OUT = 0.01
# Held-out rows of a Hub data set that are downloaded for evaluation.
REMOTE_HELD_OUT_ROWS = 2048


def take_local_shards(
    files: tuple[Path, ...], tokenizer: Tokenizer, folder: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Put `.npy` or `.bin` shards into `folder`, unchanged; return what was counted.

    Raises BadInput for a truncated file, a file without integers, and ids that the tokenizer does
    not have.
    """
    for path in files:
        open_shard(path, rows.seq_len)  # reports a mistake in the last file before any work
    train_folder = folder / "train"
    make_folder(train_folder)
    shards = []
    for number, path in enumerate(files):
        shard = describe(path, rows.seq_len)
        check_ids(open_shard(path, rows.seq_len), tokenizer.vocab_size, str(path))
        name = f"shard_{number:05d}{path.suffix}"
        mark("shard")
        try:
            link_or_copy(path, train_folder / name)
        except OSError as error:
            raise unwritable(train_folder / name, error) from None
        shards.append(replace(shard, name=name))
        say(PrepareProgress("check shards", number + 1, "shards", total=len(files)))
    train, held_out = split_tail(shards, HELD_OUT)

    held_out_rows = (
        open_shard(train_folder / s.name, rows.seq_len)[s.start : s.start + s.rows]
        for s in held_out
    )
    report = _write(train, held_out_rows, tokenizer, folder, rows)
    for name in {s.name for s in held_out} - {s.name for s in train}:
        (train_folder / name).unlink(missing_ok=True)
    return report


def take_hub_shards(
    found: Input, tokenizer: Tokenizer, folder: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Describe `.npy` shards on the Hub without downloading them; return what was counted.

    Only the first rows of the held-out part are downloaded. Raises BadInput as `hub_shards` does,
    and if those rows have ids that the tokenizer does not have.
    """
    source = found.source
    assert isinstance(source, HubNpyShards)
    shards = hub_shards(source, found.commit, rows.seq_len)
    say(PrepareProgress("list shards", len(shards), "shards", total=len(shards)))
    train, held_out = split_tail(shards, HELD_OUT)

    def held_out_rows() -> Iterator[np.ndarray]:
        for shard, ids in _first_rows(held_out, REMOTE_HELD_OUT_ROWS, rows.seq_len):
            check_ids(ids, tokenizer.vocab_size, f"{source.repo}/{shard.name}")
            yield ids

    return _write(train, held_out_rows(), tokenizer, folder, rows)


def _write(
    train: tuple[Shard, ...],
    held_out_rows: Iterator[np.ndarray],
    tokenizer: Tokenizer,
    folder: Path,
    rows: RowFormat,
) -> dict[str, Any]:
    """Write the held-out rows and both manifests."""
    pad = tokenizer.pad if tokenizer.pad != tokenizer.end_of_text else None
    writer = ShardWriter(
        folder / "held_out",
        seq_len=rows.seq_len,
        vocab_size=tokenizer.vocab_size,
        rows_per_shard=rows.shard_rows,
        key=rows.key,
    )
    done = writer.appended
    for ids in held_out_rows:
        writer.append_rows(ids[done:])
        done = max(0, done - len(ids))
    make_folder(folder / "train")
    report: dict[str, Any] = {}
    mark("shard")
    for split, shards in (("train", train), ("held_out", writer.finish())):
        manifest = Manifest("tokens", rows.seq_len, tokenizer.vocab_size, shards, pad=pad)
        manifest.write(folder / split / "manifest.json")
        report |= counts_of(split, manifest)
    return report
