"""Check, before any work, that shards tokenized elsewhere say where their documents begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pion.data.arrays import open_shard
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.data.sources import Input
from pipeline.job import BinShards, HubNpyShards, NpyShards

# Ids that are searched at once, and all ids that are searched in a source on the Hub.
IDS_AT_ONCE = 2**22
REMOTE_IDS = 2**20


def check_documents(inputs: Sequence[Input], tokenizer: Tokenizer, seq_len: int) -> None:
    """Check that each tokenized source contains the end-of-text that begins a document.

    Text that Pion tokenizes needs no check: an end-of-text follows each of its documents.

    Raises BadInput for the first source without an end-of-text, and for a file that isn't a shard.
    """
    for found in inputs:
        source = found.source
        if isinstance(source, NpyShards | BinShards):
            ids, searched = _local_ids(found, seq_len), source.path
        elif isinstance(source, HubNpyShards):
            ids = _remote_ids(found, source, seq_len)
            searched = f"the first {REMOTE_IDS:,} ids of {source.repo}"
        else:
            continue
        if not any((chunk == tokenizer.end_of_text).any() for chunk in ids):
            raise BadInput(
                f"{found.key}: there is no end-of-text ({tokenizer.end_of_text_token}, id "
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


def _remote_ids(found: Input, source: HubNpyShards, seq_len: int) -> Iterator[np.ndarray]:
    """Yield the ids of the first rows, (n, seq_len) at a time."""
    from pipeline.data.hub import hub_shards, read_hub_rows

    left = -(-REMOTE_IDS // seq_len)
    for shard in hub_shards(source, found.commit, seq_len):
        if left == 0:
            return
        rows = read_hub_rows(shard, left, seq_len)
        left -= len(rows)
        yield rows
