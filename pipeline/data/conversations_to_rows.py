"""Conversations to training rows: tokenised, packed, cut into shards.

Packing works on buffers of conversations. The counts of each buffer are written to a file, so that
an interrupted call resumes with the buffer in which its last finished shard ends.

Conversations that can't be used are skipped and counted, unless they were looked at before anything
was rented: then they end the preparation. So do more than MOST_REFUSED of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

from pion.data.arrays import write_atomically
from pion.data.chat.conversation import Turn, tokenize_batch
from pion.data.chat.messages import Conversation
from pion.data.chat.packing import pack
from pion.data.chat.template import ChatTemplate, Examples
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.untrusted import LARGEST_LISTING, read_json
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.documents_to_rows import RowFormat
from pipeline.data.prepared import SPLITS
from pipeline.data.sources import SYSTEMS, Talk
from pipeline.machine.kill_points import mark

BUFFER = 16_384
PROGRESS = "packed.json"
COUNTED = (
    "conversations",
    "cut",
    "dropped",
    "tokens",
    "learned_tokens",
    "split",
    "refused",
    *SYSTEMS,
)
# The largest share of conversations that may be skipped because they can't be used.
MOST_REFUSED = 0.01
# How many of them are named.
NAMED = 3

# A conversation as the chat format takes it.
T = TypeVar("T")


@dataclass(frozen=True)
class Writing(Generic[T]):
    """A chat format that writes conversations as ids.

    Attributes:
        tokenizer: the tokenizer of the ids.
        examples: returns what is learned from each of the conversations.
    """

    tokenizer: Tokenizer
    examples: Callable[[list[T]], list[Examples]]


def in_own_format(tokenizer: Tokenizer) -> Writing[list[Turn]]:
    """Return Pion's own chat format."""

    def examples(conversations: list[list[Turn]]) -> list[Examples]:
        return [Examples((one,)) for one in tokenize_batch(tokenizer, conversations)]

    return Writing(tokenizer, examples)


def in_template(template: ChatTemplate, tokenizer: Tokenizer) -> Writing[Talk]:
    """Return the chat format of a model's template."""

    def examples(talks: list[Talk]) -> list[Examples]:
        usable = [t.conversation for t in talks if isinstance(t.conversation, Conversation)]
        written = iter(template.tokenize_batch(usable))
        found = [
            Examples(refused=t.conversation) if isinstance(t.conversation, str) else next(written)
            for t in talks
        ]
        for talk, example in zip(talks, found, strict=True):
            if talk.required and example.refused is not None:
                raise BadInput(
                    f"{example.refused}. Nothing was trained. Correct or remove this conversation"
                )
        return found

    return Writing(tokenizer, examples)


def write_conversation_rows(
    conversations: Iterable[tuple[bool, T]],
    writing: Writing[T],
    folder: Path,
    rows: RowFormat,
    what: str,
    say: Say,
) -> dict[str, Any]:
    """Write the shards of both splits below `folder`; return what was counted.

    Raises BadInput if a shard can't be written, and for conversations that can't be used.
    """
    packers = {split: _Packer(writing, folder / split, rows) for split in SPLITS}
    number = 0
    for number, (held_out, conversation) in enumerate(conversations, 1):
        packers["held_out" if held_out else "train"].append(conversation)
        if number % 1024 == 0:
            say(PrepareProgress(what, number, "conversations"))
    report: dict[str, Any] = {}
    refusals: list[str] = []
    for split, packer in packers.items():
        manifest, counts = packer.finish()
        manifest.write(folder / split / "manifest.json")
        report[f"{split}_rows"] = manifest.rows
        report |= {f"{split}_{name}": count for name, count in counts.items()}
        refusals += packer.refusals
    refused = sum(report[f"{split}_refused"] for split in SPLITS)
    if refused > MOST_REFUSED * number:
        raise BadInput(
            f"{refused:,} of {number:,} conversations can't be used, more than "
            f"{MOST_REFUSED:.0%}. The first: {'; '.join(refusals[:NAMED])}. Nothing was trained. "
            "Correct or remove them, or use another data set"
        )
    return report | {"refusals": refusals[:NAMED]}


class _Packer(Generic[T]):
    """Packs one split, a buffer at a time."""

    def __init__(self, writing: Writing[T], folder: Path, rows: RowFormat) -> None:
        tokenizer = writing.tokenizer
        self._writing, self._tokenizer, self._rows = writing, tokenizer, rows
        self.refusals: list[str] = []
        self._progress = folder / PROGRESS
        self._writer = ShardWriter(
            folder,
            seq_len=rows.seq_len,
            vocab_size=tokenizer.vocab_size,
            rows_per_shard=rows.shard_rows,
            conversations=True,
            key=rows.key,
        )
        self._buffer: list[T] = []
        self._done = self._finished_buffers()
        self._to_skip = BUFFER * len(self._done)
        # Rows in finished shards that belong to the buffer that is packed again first.
        self._rows_written = self._writer.appended - sum(b["rows"] for b in self._done)

    def append(self, conversation: T) -> None:
        if self._to_skip:
            self._to_skip -= 1
            return
        self._buffer.append(conversation)
        if len(self._buffer) == BUFFER:
            self._pack()

    def finish(self) -> tuple[Manifest, dict[str, int]]:
        """Return the manifest, and how many conversations, tokens and so on the rows hold."""
        if self._buffer:
            self._pack()
        mark("shard")
        shards = self._writer.finish()
        mark("shard")
        counts = {name: sum(buffer[name] for buffer in self._done) for name in COUNTED}
        seq_len, vocab_size = self._rows.seq_len, self._tokenizer.vocab_size
        return Manifest("conversations", seq_len, vocab_size, shards), counts

    def _pack(self) -> None:
        examples = self._writing.examples(self._buffer)
        self._buffer = []
        tokenized = [one for example in examples for one in example.tokenized]
        seq_len = self._rows.seq_len
        packed = pack(tokenized, seq_len, self._tokenizer.pad)
        skipped = min(self._rows_written, len(packed.ids))
        self._rows_written -= skipped
        mark("shard")
        self._writer.append_rows(packed.ids[skipped:], packed.flags[skipped:])
        mark("shard")
        refused = [example.refused for example in examples if example.refused is not None]
        # After an interruption, a buffer may be packed again.
        self.refusals = list(dict.fromkeys([*self.refusals, *refused]))[:NAMED]
        counts = {
            "rows": len(packed.ids),
            "conversations": packed.conversations,
            "cut": packed.cut,
            "dropped": packed.dropped,
            "tokens": sum(min(len(c.ids), seq_len) for c in tokenized),
            "learned_tokens": sum(int(c.learned[:seq_len].sum()) for c in tokenized),
            "split": sum(e.split for e in examples),
            "refused": len(refused),
        }
        self._done.append(counts | {n: sum(getattr(e, n) for e in examples) for n in SYSTEMS})
        progress = {"key": self._rows.key, "buffers": self._done, "refusals": self.refusals}
        write_atomically(self._progress, json.dumps(progress).encode())

    def _finished_buffers(self) -> list[dict[str, int]]:
        """Return the full buffers whose rows are all in finished shards."""
        try:
            progress = read_json(self._progress, LARGEST_LISTING)
            if progress["key"] != self._rows.key:
                return []
            buffers = [{n: int(b[n]) for n in ("rows", *COUNTED)} for b in progress["buffers"]]
            self.refusals = [str(refusal) for refusal in progress["refusals"]]
        except (OSError, BadInput, KeyError, TypeError, ValueError):
            return []  # never packed, or not by this class: pack again
        ends = accumulate(buffer["rows"] for buffer in buffers)
        return [buffer for buffer, end in zip(buffers, ends) if end <= self._writer.appended]
