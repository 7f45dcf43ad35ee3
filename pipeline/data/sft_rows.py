"""Conversations to training rows: tokenised on all cores, packed, cut into shards.

Packing works on buffers of conversations. The counts of each buffer are written to a file, so that
an interrupted call resumes with the buffer in which its last finished shard ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pion.data.arrays import write_atomically
from pion.data.conversation import Turn, tokenize_batch
from pion.data.packing import pack
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.untrusted import LARGEST_LISTING, read_json
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.prepared import SPLITS
from pipeline.data.text_rows import RowFormat
from pipeline.kill_points import mark

BUFFER = 16_384
PROGRESS = "packed.json"
COUNTED = ("conversations", "cut", "dropped", "tokens", "learned_tokens")


def write_conversation_rows(
    conversations: Iterable[tuple[bool, list[Turn]]],
    tokenizer: Tokenizer,
    folder: Path,
    rows: RowFormat,
    what: str,
    say: Say,
) -> dict[str, Any]:
    """Write the shards of both splits below `folder`; return what was counted.

    Raises BadInput if a shard can't be written.
    """
    packers = {split: _Packer(tokenizer, folder / split, rows) for split in SPLITS}
    for number, (held_out, turns) in enumerate(conversations, 1):
        packers["held_out" if held_out else "train"].append(turns)
        if number % 1024 == 0:
            say(PrepareProgress(what, number, "conversations"))
    report: dict[str, Any] = {}
    for split, packer in packers.items():
        manifest, counts = packer.finish()
        manifest.write(folder / split / "manifest.json")
        report[f"{split}_rows"] = manifest.rows
        report |= {f"{split}_{name}": count for name, count in counts.items()}
    return report


class _Packer:
    """Packs one split, a buffer at a time."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, rows: RowFormat) -> None:
        self._tokenizer, self._rows = tokenizer, rows
        self._progress = folder / PROGRESS
        self._writer = ShardWriter(
            folder,
            seq_len=rows.seq_len,
            vocab_size=tokenizer.vocab_size,
            rows_per_shard=rows.shard_rows,
            conversations=True,
            key=rows.key,
        )
        self._buffer: list[list[Turn]] = []
        self._done = self._finished_buffers()
        self._to_skip = BUFFER * len(self._done)
        # Rows in finished shards that belong to the buffer that is packed again first.
        self._rows_written = self._writer.appended - sum(b["rows"] for b in self._done)

    def append(self, turns: list[Turn]) -> None:
        if self._to_skip:
            self._to_skip -= 1
            return
        self._buffer.append(turns)
        if len(self._buffer) == BUFFER:
            self._pack()

    def finish(self) -> tuple[Manifest, dict[str, int]]:
        """Return the manifest, and how many conversations, tokens and so on the rows hold."""
        if self._buffer:
            self._pack()
        rows, vocab_size = self._rows, self._tokenizer.vocab_size
        mark("shard")
        shards = self._writer.finish()
        mark("shard")
        counts = {name: sum(buffer[name] for buffer in self._done) for name in COUNTED}
        return Manifest("conversations", rows.seq_len, vocab_size, shards), counts

    def _pack(self) -> None:
        tokenized = tokenize_batch(self._tokenizer, self._buffer)
        self._buffer = []
        seq_len = self._rows.seq_len
        for packed in pack(tokenized, seq_len, self._tokenizer.pad, buffer=BUFFER):
            skipped = min(self._rows_written, len(packed.ids))
            self._rows_written -= skipped
            mark("shard")
            self._writer.append_rows(packed.ids[skipped:], packed.flags[skipped:])
            mark("shard")
            self._done.append(
                {
                    "rows": len(packed.ids),
                    "conversations": packed.conversations,
                    "cut": packed.cut,
                    "dropped": packed.dropped,
                    "tokens": sum(min(len(c.ids), seq_len) for c in tokenized),
                    "learned_tokens": sum(int(c.learned[:seq_len].sum()) for c in tokenized),
                }
            )
        progress = {"key": self._rows.key, "buffers": self._done}
        write_atomically(self._progress, json.dumps(progress).encode())

    def _finished_buffers(self) -> list[dict[str, int]]:
        """Return the full buffers whose rows are all in finished shards."""
        try:
            progress = read_json(self._progress, LARGEST_LISTING)
            if progress["key"] != self._rows.key:
                return []
            buffers = [{n: int(b[n]) for n in ("rows", *COUNTED)} for b in progress["buffers"]]
        except (OSError, BadInput, KeyError, TypeError, ValueError):
            return []  # never packed, or not by this class: pack again
        done: list[dict[str, int]] = []
        left = self._writer.appended
        for buffer in buffers:
            left -= buffer["rows"]
            if left < 0:
                break
            done.append(buffer)
        return done
