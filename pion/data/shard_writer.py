"""Write shards so that a writer can continue after the last whole shard of a killed writer."""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pion.data.shards import Shard, flags_path
from pion.errors import BadInput
from pion.files import make_folder, write_atomically
from pion.untrusted import read_json


class ShardWriter:
    """Cuts documents, or takes whole rows, into shard files of ``rows_per_shard`` rows.

    Every shard is written under a temporary name, synced and renamed. Then ``<shard>.json`` is
    written and marks the shard as finished. A new writer for the same folder keeps the finished
    shards if they have the same settings and ``key``. The caller then continues with document (or
    row) number ``appended``.

    Args:
        vocab_size: every id must be below it; up to 65,536 ids are stored as uint16.
        conversations: write flags next to the ids.
        key: digest of the shards' inputs (sources, tokenizer). Finished shards with another key
            are replaced.

    Attributes:
        shards: the shards finished so far.
        appended: number of documents (or rows) already taken; the caller of a new writer skips
            this many.

    Raises:
        BadInput: the folder can't be created, or a shard does not fit into memory.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        seq_len: int,
        vocab_size: int,
        rows_per_shard: int,
        conversations: bool = False,
        key: str = "",
    ) -> None:
        self.shards: list[Shard] = []
        self.appended = 0
        self._folder = Path(folder)
        self._seq_len, self._vocab_size = seq_len, vocab_size
        self._key = [key, seq_len, vocab_size, rows_per_shard, conversations]
        self._dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        try:
            self._ids = np.empty(rows_per_shard * seq_len, dtype=self._dtype)
            self._flags = np.empty(self._ids.size, dtype=np.uint8) if conversations else None
        except (MemoryError, ValueError):
            raise BadInput(
                f"{folder}: a shard of {rows_per_shard:,} rows of {seq_len:,} ids does not fit "
                "into memory. Lower data.shard_rows"
            ) from None
        self._filled = self._dropped = 0
        # The number of ids of document number `appended` that are in finished shards already.
        self._resumed_within = 0
        make_folder(self._folder)
        self._take_over_finished()

    def append_documents(
        self, ids: np.ndarray, lengths: np.ndarray, flags: np.ndarray | None = None
    ) -> None:
        """Append documents that are joined in ``ids``, each with its end-of-text.

        ``lengths`` has the number of ids of each, int64; 0 for an empty document. For
        conversations, ``flags`` has as many flags as there are ids.

        Raises:
            BadInput: an id is beyond the vocabulary, or the shard can't be written.
        """
        if (flags is None) != (self._flags is None):
            raise ValueError("conversations need flags, and other rows must have none")
        if not len(lengths):
            return
        self._check(ids)
        marks = None if flags is None else flags.ravel()
        ends = np.cumsum(lengths)
        used, self._resumed_within = self._resumed_within, 0
        while used < len(ids):
            used += self._fill(ids[used:], None if marks is None else marks[used:])
            if self._filled == self._ids.size:
                last = int(np.searchsorted(ends, used))  # the document that the shard ends in
                ends_at_document = bool(ends[last] == used)
                begins = int(ends[last - 1]) if last else 0
                self._write_shard(
                    self.appended + last + ends_at_document,
                    0 if ends_at_document else used - begins,
                )
        self.appended += len(lengths)

    def append_rows(self, rows: np.ndarray, flags: np.ndarray | None = None) -> None:
        """Append rows ``(n, seq_len)``, each as a document, and, for conversations, their flags of
        the same shape.

        Raises:
            BadInput: an id is beyond the vocabulary, or the shard can't be written.
        """
        if rows.ndim != 2 or rows.shape[1] != self._seq_len:
            raise ValueError(f"the rows have shape {rows.shape}, not (n, {self._seq_len})")
        self.append_documents(rows.ravel(), np.full(len(rows), self._seq_len), flags)

    def finish(self) -> tuple[Shard, ...]:
        """Write the rows that don't fill a shard; drop the ids that don't fill a row.

        Raises:
            BadInput: the shard can't be written.
        """
        self._dropped = self._filled % self._seq_len
        self._filled -= self._dropped
        if self._filled:
            self._write_shard(self.appended, 0)
        return tuple(self.shards)

    def _check(self, ids: np.ndarray) -> None:
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise BadInput(
                f"{self._folder}: id {wrong:,} is beyond the vocabulary of {self._vocab_size:,} "
                f"ids: the text was encoded with a different tokenizer."
            )

    def _fill(self, ids: np.ndarray, flags: np.ndarray | None) -> int:
        """Copy as many ids into the buffer as it has room for, and return how many."""
        taken = min(len(ids), self._ids.size - self._filled)
        here = slice(self._filled, self._filled + taken)
        self._ids[here] = ids[:taken]
        if self._flags is not None and flags is not None:
            self._flags[here] = flags[:taken]
        self._filled += taken
        return taken

    def _write_shard(self, appended: int, within: int) -> None:
        """Write the buffer and the progress: ``appended`` documents, and ``within`` ids of the
        next document."""
        path = self._next_path()
        sha256, size = self._write_array(path, self._ids)
        flags_sha256, flags_size = None, 0
        if self._flags is not None:
            flags_sha256, flags_size = self._write_array(flags_path(path), self._flags)
        shard = Shard(
            path.name,
            rows=self._filled // self._seq_len,
            sha256=sha256,
            bytes=size,
            dtype=self._dtype.name,
            flags_sha256=flags_sha256,
            flags_bytes=flags_size,
        )
        progress = {
            "key": self._key,
            "appended": appended,
            "within": within,
            "dropped_tokens": self._dropped,
            "shard": asdict(shard),
        }
        write_atomically(path.with_suffix(".json"), json.dumps(progress).encode())
        self.shards.append(shard)
        self._filled = 0

    def _write_array(self, path: Path, buffer: np.ndarray) -> tuple[str, int]:
        """Write the filled rows of ``buffer``; return the file's sha256 and size in bytes."""
        array = buffer[: self._filled].reshape(-1, self._seq_len)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(array)
        )
        digest = hashlib.sha256(header.getvalue())
        digest.update(array.data)
        write_atomically(path, header.getvalue(), array.data)
        return digest.hexdigest(), len(header.getvalue()) + array.nbytes

    def _take_over_finished(self) -> None:
        while True:
            path = self._next_path()
            try:
                progress = read_json(path.with_suffix(".json"))
                shard = Shard(**progress["shard"])
                is_complete = path.stat().st_size == shard.bytes and (
                    shard.flags_sha256 is None
                    or flags_path(path).stat().st_size == shard.flags_bytes
                )
                counts = [progress[name] for name in ("appended", "within")]
                valid = all(type(count) is int and count >= 0 for count in counts)
                if not (is_complete and valid and progress["key"] == self._key):
                    return
                self.appended, self._resumed_within = counts
            except (OSError, BadInput, ValueError, KeyError, TypeError):
                return  # not finished, or not from a ShardWriter: write this shard again
            self.shards.append(shard)

    def _next_path(self) -> Path:
        return self._folder / f"shard_{len(self.shards):05d}.npy"
