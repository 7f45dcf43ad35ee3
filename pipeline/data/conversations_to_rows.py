"""Conversations to training rows: tokenised, packed, cut into shards.

Packing works on buffers of conversations, which are the pieces of this data: many processes may
pack them. The counts of each buffer are written to a file, so that an interrupted call resumes with
the buffer in which its last finished shard ends.

Conversations that can't be used are skipped and counted, unless they were looked at before anything
was rented: then they end the preparation. So do more than MOST_REFUSED of all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.messages import Conversation
from pion.data.chat.packing import pack, row_that_holds
from pion.data.chat.template import COUNTS, Examples
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, flags_path
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.files import write_atomically
from pion.untrusted import LARGEST_LISTING, read_json
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.documents_to_rows import RowFormat
from pipeline.data.prepared import SPLITS
from pipeline.data.remarks import MANY_DROPPED
from pipeline.data.sources import Talk
from pipeline.data.tasks import Tasks
from pipeline.machine.kill_points import mark
from pipeline.machine.time_limit import attended_items

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
    "fits",
    *COUNTS,
)
# The largest share of conversations that may be skipped because they can't be used.
MOST_REFUSED = 0.01
# How many of them are named.
NAMED = 3


@dataclass(frozen=True)
class Writing:
    """A chat format that writes conversations as ids.

    Attributes:
        written: the chat format.
        elsewhere: what packs conversations in this format; None: this process does.
    """

    written: ChatFormat
    elsewhere: Elsewhere | None = None

    def examples(self, talks: Sequence[Talk]) -> list[Examples]:
        """Return what is learned from each conversation; those that can't be used say why.

        Raises BadInput for one that must be usable and is not.
        """
        usable = [t.conversation for t in talks if isinstance(t.conversation, Conversation)]
        made = iter(self.written.examples(usable))
        found = [
            Examples(refused=t.conversation) if isinstance(t.conversation, str) else next(made)
            for t in talks
        ]
        for talk, example in zip(talks, found, strict=True):
            if talk.required and example.refused is not None:
                raise BadInput(
                    f"{example.refused}. Nothing was trained. Correct or remove this conversation"
                )
        return found


@dataclass(frozen=True)
class Elsewhere:
    """What packs conversations in other processes.

    Attributes:
        tasks: what does the work.
        files: the tokenizer.json and what is next to it.
        finished: is told each file that is finished.
    """

    tasks: Tasks
    files: tuple[tuple[str, bytes], ...]
    finished: Callable[[Path], None]


@dataclass(frozen=True)
class PackedBuffer:
    """A buffer of one split as rows.

    Attributes:
        split: which split it is of.
        ids, flags: its rows; see `Packed`.
        counts: what was counted, by the names in COUNTED, and its rows.
        refusals: why conversations can't be used.
    """

    split: str
    ids: np.ndarray
    flags: np.ndarray
    counts: dict[str, int]
    refusals: list[str]


def write_conversation_rows(
    conversations: Iterable[tuple[bool, Talk]],
    writing: Writing,
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

    def look() -> None:
        say(PrepareProgress(what, number, "conversations"))

    def buffers() -> Iterator[tuple[str, list[Talk]]]:
        nonlocal number
        for number, (held_out, conversation) in enumerate(conversations, 1):
            split = SPLITS[held_out]
            if buffer := packers[split].append(conversation):
                yield split, buffer
            if number % 1024 == 0:
                look()
        for split, packer in packers.items():
            if packer.buffer:
                yield split, packer.buffer

    for packed in _packed(writing, rows.seq_len, buffers(), look):
        packers[packed.split].write(packed)
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


class _Packer:
    """Packs one split, a buffer at a time."""

    def __init__(self, writing: Writing, folder: Path, rows: RowFormat) -> None:
        tokenizer = writing.written.tokenizer
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
        self.buffer: list[Talk] = []
        self._done = self._finished_buffers()
        self._to_skip = BUFFER * len(self._done)
        # Rows in finished shards that belong to the buffer that is packed again first.
        self._rows_written = self._writer.appended - sum(b["rows"] for b in self._done)

    def append(self, conversation: Talk) -> list[Talk]:
        """Append a conversation; return the buffer if it is full, and begin the next."""
        if self._to_skip:
            self._to_skip -= 1
            return []
        self.buffer.append(conversation)
        if len(self.buffer) < BUFFER:
            return []
        full, self.buffer = self.buffer, []
        return full

    def finish(self) -> tuple[Manifest, dict[str, int]]:
        """Return the manifest, and how many conversations, tokens and so on the rows hold."""
        mark("shard")
        told = len(self._writer.shards)
        shards = self._writer.finish()
        mark("shard")
        self._tell(told)
        counts = {name: sum(buffer[name] for buffer in self._done) for name in COUNTED}
        counts["fits"] = max((buffer["fits"] for buffer in self._done), default=0)
        seq_len, vocab_size = self._rows.seq_len, self._tokenizer.vocab_size
        return Manifest("conversations", seq_len, vocab_size, shards), counts

    def write(self, packed: PackedBuffer) -> None:
        """Write the rows of a buffer that are in no finished shard, and what was counted."""
        skipped = min(self._rows_written, len(packed.ids))
        self._rows_written -= skipped
        told = len(self._writer.shards)
        mark("shard")
        self._writer.append_rows(packed.ids[skipped:], packed.flags[skipped:])
        mark("shard")
        # After an interruption, a buffer may be packed again.
        self.refusals = list(dict.fromkeys([*self.refusals, *packed.refusals]))[:NAMED]
        self._done.append(packed.counts)
        progress = {"key": self._rows.key, "buffers": self._done, "refusals": self.refusals}
        write_atomically(self._progress, json.dumps(progress).encode())
        self._tell(told)

    def _tell(self, first: int) -> None:
        """Tell of the shards from number `first` on, and of what was counted until then."""
        if self._writing.elsewhere is None or len(self._writer.shards) == first:
            return
        finished, folder = self._writing.elsewhere.finished, self._progress.parent
        finished(self._progress)
        for shard in self._writer.shards[first:]:
            finished(folder / shard.name)
            finished(flags_path(folder / shard.name))
            finished((folder / shard.name).with_suffix(".json"))

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


# ---------------------------------------------------------------- packing a buffer


def _packed(
    writing: Writing,
    seq_len: int,
    buffers: Iterator[tuple[str, list[Talk]]],
    look: Callable[[], None],
) -> Iterator[PackedBuffer]:
    """Yield each buffer as rows, packed here or elsewhere."""
    if writing.elsewhere is None:
        for split, buffer in buffers:
            yield _pack(writing, seq_len, split, buffer)
        return
    shared = (writing.elsewhere.files, seq_len)
    yield from attended_items(writing.elsewhere.tasks.map(pack_buffer, shared, buffers), look)


def pack_buffer(
    shared: tuple[tuple[tuple[str, bytes], ...], int], item: tuple[str, list[Any]]
) -> PackedBuffer:
    """Return a buffer of a split as rows. `shared` has the tokenizer's files and the ids of a row.

    Raises BadInput for a conversation that must be usable and is not.
    """
    files, seq_len = shared
    return _pack(_writing_of(files), seq_len, *item)


@lru_cache(1)
def _writing_of(files: tuple[tuple[str, bytes], ...]) -> Writing:
    """Return the format of a model with these files. A process packs many buffers in the same."""
    with TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        tokenizer = Tokenizer.from_file(Path(folder, "tokenizer.json"), "tokenizer.json")
        written = ChatFormat(Path(folder, "tokenizer.json"), tokenizer)
        if not written.own:
            _ = written.template  # which reads the folder
        return Writing(written)


def _pack(writing: Writing, seq_len: int, split: str, buffer: list[Talk]) -> PackedBuffer:
    examples = writing.examples(buffer)
    tokenized = [one for example in examples for one in example.tokenized]
    packed = pack(tokenized, seq_len, writing.written.tokenizer.pad)
    refused = [example.refused for example in examples if example.refused is not None]
    counts = {
        "rows": len(packed.ids),
        "conversations": packed.conversations,
        "cut": packed.cut,
        "dropped": packed.dropped,
        "tokens": sum(min(len(c.ids), seq_len) for c in tokenized),
        "learned_tokens": sum(int(c.learned[:seq_len].sum()) for c in tokenized),
        "split": sum(e.split for e in examples),
        "refused": len(refused),
        "fits": row_that_holds(1 - MANY_DROPPED, np.array([len(c.ids) for c in tokenized])),
    }
    counts |= total_counts(examples)
    return PackedBuffer(split, packed.ids, packed.flags, counts, refused)


def total_counts(examples: Sequence[Examples]) -> dict[str, int]:
    """Return what `Examples` counts, of all, by the names in COUNTS."""
    return {name: sum(int(getattr(example, name)) for example in examples) for name in COUNTS}
