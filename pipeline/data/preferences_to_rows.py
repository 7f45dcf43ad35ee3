"""Preferences to training rows: rendered, divided by their prompts, packed
(`pipeline.data.piece_rows`).

Only the ids of a prompt decide whether it is held out, so a buffer is divided after encoding.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.arrays import open_npy
from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.packing import Sided, pack_items
from pion.data.preference.rendering import (
    Outcome,
    PreferenceFormat,
    Refused,
    Usable,
    is_held_out,
    marked_preference,
    preference_format,
)
from pion.data.preference.summary import Summary, Tally, summarize, tally_of, total
from pion.data.row_flags import SEQUENCES, STARTS
from pion.data.shards import Manifest, flags_path
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.files import write_atomically
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.piece_rows import EncodedPiece, PieceRows, require_usable
from pipeline.data.preferences import Kind, Read, preferences
from pipeline.data.prepared import SPLITS
from pipeline.data.remarks import Remarks
from pipeline.data.source_reading import SourceReading
from pipeline.data.sources import Shown
from pipeline.data.splits import RowFormat
from pipeline.job import Job
from pipeline.state.record_json import closed_record

# Preferences that are encoded and packed together: as many sequences as of conversations.
BUFFER = 8192


@dataclass(frozen=True)
class PreferenceRows:
    """How preferences become rows.

    Attributes:
        tokenizer: that of the ids.
        written: the chat format, and the most tokens of a sequence and of a row.
        rows: how rows are cut.
        held_out: the share of the prompts that is held out.
        seed: decides which these are.
        where: the job's key of the source, for errors.
    """

    tokenizer: Tokenizer
    written: PreferenceFormat
    rows: RowFormat
    held_out: float
    seed: int
    where: str


def write_preferences(
    reading: SourceReading, written: ChatFormat, place: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Write the rows of a source of preferences, and return its report."""
    job, source_input, tokenizer = reading.job, reading.found, written.tokenizer
    remarks = Remarks(tokenizer.replaced(), source_input.left_out)
    context, share = job.model_config_resolved().seq_len, job.data_section("prefer").held_out
    form = preference_format(written, rows.seq_len, context)
    how = PreferenceRows(tokenizer, form, rows, share, job.seed, source_input.key)
    summary, refusals = write_preference_rows(
        preferences(job, source_input, remarks), how, place, say
    )
    remarks.counts = summary.tally.seen
    # With the names that the reports of conversations have.
    return {
        "train_rows": summary.train.rows,
        "held_out_rows": summary.held_out.rows,
        "train_tokens": summary.train.tokens,
        "held_out_tokens": summary.held_out.tokens,
        "train_refused": summary.tally.refused,
        "held_out_refused": 0,
        "refusals": refusals,
        "preferences": summary.record(),
    } | remarks.report(summary.warnings())


def show_preference(job: Job, record: Read, written: ChatFormat) -> Shown | None:
    """Return what the model sees of a preference; None if it is not usable."""
    how = preference_format(written, job.seq_len("prefer"), job.model_config_resolved().seq_len)
    outcomes = [] if isinstance(record.preference, str) else how.outcomes([record.preference])
    for outcome in outcomes:
        if isinstance(outcome, Usable):
            ids = np.concatenate([side.sequence.ids for side in outcome.item])
            return marked_preference(written.tokenizer, outcome), ids.tolist()
    return None


def write_preference_rows(
    read: Iterable[Read], how: PreferenceRows, folder: Path, say: Say
) -> tuple[Summary, list[str]]:
    """Write the shards of both splits below `folder`, each with its manifest and SEQUENCES.

    Returns:
        The summary, and why the first of the records that can't be used can't.

    Raises BadInput if a shard can't be written, for a record that can't be used although it was
    looked at before renting, for more than MOST_REFUSED of them, and for data that `Summary.check`
    refuses.
    """
    kind: Kind | None = None
    number = 0

    def look() -> None:
        say(PrepareProgress(f"pack {how.where}", number, "preferences"))

    def noted() -> Iterator[Read]:
        nonlocal kind, number
        for number, preference in enumerate(read, 1):
            kind = kind or preference.kind
            if number % 1024 == 0:
                look()
            yield preference

    items = noted()
    buffers = iter(lambda: list(islice(items, BUFFER)), [])
    settings = [how.rows.key, how.written.context, how.held_out, how.seed]
    rows = replace(how.rows, key=json.dumps(settings))
    counted = closed_record(Tally)
    writer = PieceRows(folder, rows, how.tokenizer.vocab_size, counted, say, flags=True)
    writer.write(buffers, partial(map, partial(pack_buffer, how)), look)
    kind = kind or "pairs"
    flags = {
        split: _write_sequences(folder / split, manifest)
        for split, manifest in writer.splits.finish(kind).items()
    }
    tally = total(writer.counts)
    require_usable("preferences", tally.refused, tally.read, writer.refusals, f"{how.where}: ")
    summary = summarize(kind, flags, how.rows.seq_len, tally)
    summary.check(how.where)
    return summary, writer.refusals


def _write_sequences(folder: Path, manifest: Manifest) -> list[np.ndarray]:
    """Write the SEQUENCES of a split; return the flags of its shards."""
    flags = [open_npy(flags_path(folder / s.name), manifest.seq_len) for s in manifest.shards]
    counts = [((shard_flags & STARTS) != 0).sum(axis=1) for shard_flags in flags]
    content = io.BytesIO()
    np.save(content, np.cumsum(np.concatenate([[0], *counts])).astype(np.int32))
    write_atomically(folder / SEQUENCES, content.getvalue())
    return flags


# ---------------------------------------------------------------- packing a buffer


def pack_buffer(how: PreferenceRows, buffer: list[Read]) -> EncodedPiece:
    """Return a buffer as rows. Raises BadInput for a record that must be usable and is not."""
    outcomes = _outcomes(how, buffer)
    items: dict[str, list[Sequence[Sided]]] = {split: [] for split in SPLITS}
    for outcome, read in zip(outcomes, buffer, strict=True):
        if isinstance(outcome, Usable):
            by_prompt = partial(is_held_out, outcome.prompt, how.held_out, how.seed)
            held_out = by_prompt() if read.held_out is None else read.held_out
            items[SPLITS[held_out]].append(outcome.item)
    rows = {
        split: pack_items(some, how.rows.seq_len, how.tokenizer.pad)
        for split, some in items.items()
    }
    tally = tally_of([outcome.preference for outcome in buffer], outcomes)
    refused = [outcome.why for outcome in outcomes if isinstance(outcome, Refused)]
    return EncodedPiece(rows, tally, refused)


def _outcomes(how: PreferenceRows, buffer: Sequence[Read]) -> list[Outcome]:
    """Return what becomes of each record.

    Raises BadInput for a record that must be usable and is not.
    """
    parsed = [item.preference for item in buffer if not isinstance(item.preference, str)]
    rest = iter(how.written.outcomes(parsed))
    outcomes = [
        Refused(item.preference) if isinstance(item.preference, str) else next(rest)
        for item in buffer
    ]
    for item, outcome in zip(buffer, outcomes, strict=True):
        if item.required and isinstance(outcome, Refused):
            raise BadInput(f"{outcome.why}. Nothing was trained. Correct or remove this preference")
    return outcomes
