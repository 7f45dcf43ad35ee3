"""Preferences to training rows: rendered, divided by their prompts, packed, cut into shards.

This is as for conversations (`pipeline.data.conversations_to_rows`): the counts of each buffer are
written to a file, and an interrupted call resumes with the buffer in which a finished shard ends.
But only the ids of a prompt decide whether it is held out, so a buffer is divided after encoding.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.arrays import open_npy
from pion.data.preference.rendering import (
    Outcome,
    PreferenceFormat,
    Refused,
    Usable,
    is_held_out,
    pack_preferences,
)
from pion.data.preference.summary import Summary, Tally, summarize, tally_of, total
from pion.data.row_flags import SEQUENCES, sequence_counts
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, flags_path
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.files import write_atomically
from pion.untrusted import LARGEST_LISTING, read_json
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.conversations_to_rows import MOST_REFUSED, NAMED, PROGRESS
from pipeline.data.documents_to_rows import RowFormat
from pipeline.data.preferences import Kind, Read
from pipeline.data.prepared import SPLITS
from pipeline.machine.kill_points import mark

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

    @property
    def key(self) -> str:
        """What the rows of finished shards were made from."""
        settings = [self.rows.key, self.written.context, self.held_out, self.seed]
        return json.dumps(settings)


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
    packer = _Packer(how, folder)
    kind: Kind | None = None
    for number, one in enumerate(read, 1):
        kind = kind or one.kind
        packer.append(one)
        if number % 1024 == 0:
            say(PrepareProgress(f"pack {how.where}", number, "preferences"))
    summary = packer.finish(kind or "pairs")
    tally = summary.tally
    if tally.refused > MOST_REFUSED * tally.read:
        raise BadInput(
            f"{how.where}: {tally.refused:,} of {tally.read:,} preferences can't be used, more "
            f"than {MOST_REFUSED:.0%}. The first: {'; '.join(packer.refusals)}. Nothing was "
            "trained. Correct or remove them, or use another data set"
        )
    summary.check(how.where)
    return summary, packer.refusals


class _Packer:
    """Packs both splits, a buffer at a time."""

    def __init__(self, how: PreferenceRows, folder: Path) -> None:
        self.refusals: list[str] = []
        self._how, self._folder, self._progress = how, folder, folder / PROGRESS
        self._writers = {
            split: ShardWriter(
                folder / split,
                seq_len=how.rows.seq_len,
                vocab_size=how.tokenizer.vocab_size,
                rows_per_shard=how.rows.shard_rows,
                conversations=True,
                key=how.key,
            )
            for split in SPLITS
        }
        self._buffer: list[Read] = []
        # Of each finished buffer: the rows of each split, and the counts.
        self._done: list[tuple[dict[str, int], Tally]] = []
        self._take_over_finished()
        self._to_skip = BUFFER * len(self._done)
        # Rows in finished shards that belong to the buffer that is packed again first.
        self._rows_written = {
            split: writer.appended - sum(rows[split] for rows, _ in self._done)
            for split, writer in self._writers.items()
        }

    def append(self, one: Read) -> None:
        if self._to_skip:
            self._to_skip -= 1
            return
        self._buffer.append(one)
        if len(self._buffer) == BUFFER:
            self._pack()

    def finish(self, kind: Kind) -> Summary:
        """Write the last shards and what describes them; return what they hold."""
        if self._buffer:
            self._pack()
        flags = {split: self._finish(split, kind) for split in SPLITS}
        tally = total(counts for _, counts in self._done)
        return summarize(kind, flags, self._how.rows.seq_len, tally)

    def _finish(self, split: str, kind: Kind) -> list[np.ndarray]:
        """Write the last shard, the manifest and SEQUENCES of a split; return its flags."""
        seq_len, folder = self._how.rows.seq_len, self._folder / split
        mark("shard")
        shards = self._writers[split].finish()
        mark("shard")
        Manifest(kind, seq_len, self._how.tokenizer.vocab_size, shards).write(
            folder / "manifest.json"
        )
        flags = [open_npy(flags_path(folder / shard.name), seq_len) for shard in shards]
        counts = np.concatenate([np.diff(sequence_counts(one)) for one in flags] or [np.zeros(0)])
        content = io.BytesIO()
        np.save(content, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        write_atomically(folder / SEQUENCES, content.getvalue())
        return flags

    def _pack(self) -> None:
        buffer, self._buffer = self._buffer, []
        outcomes, tally = self._outcomes(buffer)
        usable = [one for one in outcomes if isinstance(one, Usable)]
        held_out = [
            self._is_held_out(one, read)
            for one, read in zip(outcomes, buffer, strict=True)
            if isinstance(one, Usable)
        ]
        rows = {
            split: self._append(
                split, [one for one, out in zip(usable, held_out) if out == (split == "held_out")]
            )
            for split in SPLITS
        }
        # After an interruption, a buffer may be packed again.
        refused = [one.why for one in outcomes if isinstance(one, Refused)]
        self.refusals = list(dict.fromkeys([*self.refusals, *refused]))[:NAMED]
        self._done.append((rows, tally))
        buffers = [{"rows": rows, "tally": asdict(counts)} for rows, counts in self._done]
        progress = {"key": self._how.key, "buffers": buffers, "refusals": self.refusals}
        write_atomically(self._progress, json.dumps(progress).encode())

    def _is_held_out(self, one: Usable, read: Read) -> bool:
        if read.held_out is not None:
            return read.held_out
        return is_held_out(one.prompt, self._how.held_out, self._how.seed)

    def _outcomes(self, buffer: Sequence[Read]) -> tuple[list[Outcome], Tally]:
        """Return what becomes of each record, and the counts of it."""
        parsed = [one.preference for one in buffer if not isinstance(one.preference, str)]
        rest = iter(self._how.written.outcomes(parsed))
        outcomes = [
            Refused(one.preference) if isinstance(one.preference, str) else next(rest)
            for one in buffer
        ]
        for one, outcome in zip(buffer, outcomes, strict=True):
            if one.required and isinstance(outcome, Refused):
                raise BadInput(
                    f"{outcome.why}. Nothing was trained. Correct or remove this preference"
                )
        return outcomes, tally_of([one.preference for one in buffer], outcomes)

    def _append(self, split: str, usable: Sequence[Usable]) -> int:
        """Write the rows of one split; return how many there are."""
        how = self._how
        ids, flags = pack_preferences(
            [one.item for one in usable], how.rows.seq_len, how.tokenizer.pad
        )
        skipped = min(self._rows_written[split], len(ids))
        self._rows_written[split] -= skipped
        mark("shard")
        self._writers[split].append_rows(ids[skipped:], flags[skipped:])
        mark("shard")
        return len(ids)

    def _take_over_finished(self) -> None:
        """Note the full buffers whose rows are all in finished shards."""
        try:
            progress = read_json(self._progress, LARGEST_LISTING)
            if progress["key"] != self._how.key:
                return
            buffers = [_finished(buffer) for buffer in progress["buffers"]]
            refusals = [str(refusal) for refusal in progress["refusals"]]
        except (OSError, BadInput, KeyError, TypeError, ValueError):
            return  # never packed, or not by this class: pack again
        ends = dict.fromkeys(SPLITS, 0)
        for rows, tally in buffers:
            ends = {split: end + rows[split] for split, end in ends.items()}
            if any(end > self._writers[split].appended for split, end in ends.items()):
                break
            self._done.append((rows, tally))
        self.refusals = refusals


def _finished(buffer: dict[str, Any]) -> tuple[dict[str, int], Tally]:
    rows = {split: int(buffer["rows"][split]) for split in SPLITS}
    if min(rows.values()) < 0:
        raise ValueError(f"{rows} are no rows")
    return rows, Tally.from_record(buffer["tally"])
