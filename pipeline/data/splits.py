"""The shards of both splits of a source, whatever its rows are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pion.data.shard_writer import ShardWriter
from pion.data.shards import Kind, Manifest, flags_path
from pipeline.data.prepared import SPLITS
from pipeline.machine.kill_points import mark


@dataclass(frozen=True)
class RowFormat:
    """How rows are cut.

    Attributes:
        seq_len: the ids of a row.
        shard_rows: the rows of a shard.
        key: identifies the sources and the tokenizer (see ShardWriter).
        finished: is told each file that is finished, in an order in which each file can be used
            together with those before.
    """

    seq_len: int
    shard_rows: int
    key: str
    finished: Callable[[Path], object] = lambda path: None


class Splits:
    """The shards of the training and held-out rows of one source, in its `folder`.

    With `flags`, they are next to the ids.

    Attributes:
        writers: what writes the shards of each split.
    """

    def __init__(
        self, folder: Path, rows: RowFormat, vocab_size: int, *, flags: bool = False
    ) -> None:
        self._folder, self._rows, self._vocab_size = folder, rows, vocab_size
        self.writers = {
            split: ShardWriter(
                folder / split,
                seq_len=rows.seq_len,
                vocab_size=vocab_size,
                rows_per_shard=rows.shard_rows,
                conversations=flags,
                key=rows.key,
            )
            for split in SPLITS
        }

    @contextmanager
    def writing(self, split: str) -> Iterator[ShardWriter]:
        """Yield the writer of a split, and tell of the shards that it has finished in the block."""
        writer = self.writers[split]
        before = len(writer.shards)
        mark("shard")
        yield writer
        mark("shard")
        for shard in writer.shards[before:]:
            path = self._folder / split / shard.name
            self._rows.finished(path)
            if shard.flags_sha256 is not None:
                self._rows.finished(flags_path(path))
            self._rows.finished(path.with_suffix(".json"))

    def finish(self, kind: Kind, records: Mapping[str, str] | None = None) -> dict[str, Manifest]:
        """Write the last shards and the manifests; return the manifests.

        `records` has, by split, the sha256 of the file next to the rows of prompts. Raises BadInput
        if they can't be written.
        """
        manifests = {}
        for split in SPLITS:
            with self.writing(split) as writer:
                shards = writer.finish()
            row, sha256 = self._rows.seq_len, (records or {}).get(split)
            manifests[split] = Manifest(kind, row, self._vocab_size, shards, records=sha256)
            manifests[split].write(self._folder / split / "manifest.json")
        return manifests
