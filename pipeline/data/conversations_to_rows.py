"""Conversations to training rows: tokenised and packed (`pipeline.data.piece_rows`).

Conversations that can't be used are skipped and counted, unless they were looked at before anything
was rented: then they end the preparation. So do too many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import marked_text
from pion.data.chat.messages import Conversation
from pion.data.chat.packing import pack, row_that_holds
from pion.data.chat.template import COUNTS, Examples
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.piece_rows import NAMED, EncodedPiece, PieceRows, require_usable
from pipeline.data.pieces import has_pieces
from pipeline.data.prepared import SPLITS
from pipeline.data.remarks import MANY_DROPPED, Remarks
from pipeline.data.source_reading import SourceReading, tokenizer_files
from pipeline.data.sources import Shown, Talk, conversations
from pipeline.data.splits import RowFormat
from pipeline.data.tasks import InThisProcess
from pipeline.job import Job
from pipeline.state.record_json import Count, record_type

BUFFER = 16_384
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
_COUNTS = record_type(dict.fromkeys(COUNTED, Count), split_of=Literal["train", "held_out"])
# The conversations of a buffer, and the split that all are of.
Buffer = tuple[str, list[Talk]]
# The names and the contents of the tokenizer.json and of what is next to it.
Files = tuple[tuple[str, bytes], ...]


def write_conversation_rows(
    conversations: Iterable[tuple[bool, Talk]],
    pack: Callable[[Iterator[Buffer]], Iterator[EncodedPiece]],
    vocab_size: int,
    folder: Path,
    rows: RowFormat,
    progress: tuple[str, Say],
) -> dict[str, Any]:
    """Write the shards of both splits below `folder`; return what was counted.

    `pack` yields buffers as rows, in order. `progress` is what is done, in words, and who hears of
    it. Raises BadInput if a shard can't be written, and for conversations that can't be used.
    """
    number = 0

    def look() -> None:
        label, say = progress
        say(PrepareProgress(label, number, "conversations"))

    def buffers() -> Iterator[Buffer]:
        nonlocal number
        begun: dict[str, list[Talk]] = {split: [] for split in SPLITS}
        for number, (held_out, talk) in enumerate(conversations, 1):
            split = SPLITS[held_out]
            begun[split].append(talk)
            if len(begun[split]) == BUFFER:
                yield split, begun[split]
                begun[split] = []
            if number % 1024 == 0:
                look()
        yield from ((split, buffer) for split, buffer in begun.items() if buffer)

    writer = PieceRows(folder, rows, vocab_size, _COUNTS, progress[1], flags=True)
    writer.write(buffers(), pack, look)
    report: dict[str, Any] = {}
    for split, manifest in writer.splits.finish("conversations").items():
        counted = [counts for counts in writer.counts if counts["split_of"] == split]
        report[f"{split}_rows"] = manifest.rows
        report |= {f"{split}_{name}": sum(counts[name] for counts in counted) for name in COUNTED}
        report[f"{split}_fits"] = max((counts["fits"] for counts in counted), default=0)
    refused = sum(report[f"{split}_refused"] for split in SPLITS)
    require_usable("conversations", refused, number, writer.refusals)
    return report | {"refusals": writer.refusals[:NAMED]}


def write_conversations(
    reading: SourceReading, written: ChatFormat, place: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Write the rows of a source of conversations, and return its report."""
    source_input, tokenizer = reading.found, written.tokenizer
    remarks = Remarks(tokenizer.replaced(), source_input.left_out)
    talks = conversations(reading.job, source_input, own=written.own, remarks=remarks)
    pack = partial(InThisProcess().map, pack_here, (written, rows.seq_len))
    if reading.tasks is not None and has_pieces(source_input.source):
        shared = tokenizer_files(place.parent), rows.seq_len
        pack = partial(reading.tasks.map, pack_buffer, shared)
    report = write_conversation_rows(
        talks, pack, tokenizer.vocab_size, place, rows, (f"pack {source_input.name}", say)
    )
    remarks.note_counts(report, rows.seq_len)
    return report | remarks.report()


def show_conversation(job: Job, record: tuple[bool, Talk], written: ChatFormat) -> Shown:
    """Return what the model sees of a conversation."""
    (examples,) = learned_from(written, [record[1]])
    example = examples.tokenized[-1]  # of a split one, the example with all turns
    return [marked_text(written.tokenizer, example)], example.ids.tolist()


# ---------------------------------------------------------------- packing a buffer


def pack_buffer(shared: tuple[Files, int], item: Buffer) -> EncodedPiece:
    """Return a buffer of a split as rows. `shared` has the tokenizer's files and the ids of a row.

    Raises BadInput for a conversation that must be usable and is not.
    """
    files, seq_len = shared
    return pack_here((_format_of(files), seq_len), item)


@lru_cache(1)
def _format_of(files: Files) -> ChatFormat:
    """Return the format of a model with these files. A process packs many buffers in the same."""
    with TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        tokenizer = Tokenizer.from_file(Path(folder, "tokenizer.json"), "tokenizer.json")
        written = ChatFormat(Path(folder, "tokenizer.json"), tokenizer)
        if not written.own:
            _ = written.template  # which reads the folder
        return written


def pack_here(shared: tuple[ChatFormat, int], item: Buffer) -> EncodedPiece:
    """Return a buffer as rows, as `pack_buffer` does. `shared` has the format and the ids of a
    row."""
    (written, seq_len), (split, buffer) = shared, item
    examples = learned_from(written, buffer)
    tokenized = [tokenized_talk for example in examples for tokenized_talk in example.tokenized]
    packed = pack(tokenized, seq_len, written.tokenizer.pad)
    refused = [example.refused for example in examples if example.refused is not None]
    counts = {
        "split_of": split,
        "conversations": packed.conversations,
        "cut": packed.cut,
        "dropped": packed.dropped,
        "tokens": sum(min(len(c.ids), seq_len) for c in tokenized),
        "learned_tokens": sum(int(c.learned[:seq_len].sum()) for c in tokenized),
        "split": sum(e.split for e in examples),
        "refused": len(refused),
        "fits": row_that_holds(1 - MANY_DROPPED, np.array([len(c.ids) for c in tokenized])),
        **{name: sum(int(getattr(e, name)) for e in examples) for name in COUNTS},
    }
    ids: dict[str, tuple[np.ndarray, np.ndarray | None]]
    ids = dict.fromkeys(SPLITS, (packed.ids[:0], packed.flags[:0]))
    return EncodedPiece(ids | {split: (packed.ids, packed.flags)}, counts, refused)


def learned_from(written: ChatFormat, talks: Sequence[Talk]) -> list[Examples]:
    """Return what is learned from each conversation; those that can't be used say why.

    Raises BadInput for one that must be usable and is not.
    """
    usable = [t.conversation for t in talks if isinstance(t.conversation, Conversation)]
    made = iter(written.examples(usable))
    examples = [
        Examples(refused=t.conversation) if isinstance(t.conversation, str) else next(made)
        for t in talks
    ]
    for talk, example in zip(talks, examples, strict=True):
        if talk.required and example.refused is not None:
            raise BadInput(
                f"{example.refused}. Nothing was trained. Correct or remove this conversation"
            )
    return examples
