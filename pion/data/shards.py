"""Training rows on disk: shard files, the manifest that fingerprints them, and reading a row.

A shard is an ``.npy`` array ``(rows, seq_len)`` of unsigned token ids. A shard of conversations has
a second array of the same shape next to it, ``<name>.flags.npy`` (uint8). Its flags mark the
learned tokens, the starts of conversations and the padding (`pion.data.row_flags`). So has a shard
of preferences, whose flags also mark the preferred sequences. Shards of other programs are read as
they are: ``.npy`` of any integer type, and Daisy's ``.bin``. Manifests may come from others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pion.data.arrays import open_npy, open_shard
from pion.data.row_flags import LEARNED, PADDING, STARTS, require_pairs, sides_of
from pion.errors import BadInput
from pion.files import sha256_file, write_atomically
from pion.untrusted import LARGEST_LISTING, parse_object, read_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
# A file name: no folder, and no control characters.
_NAME = re.compile(r"[^/\x00-\x1f\x7f]+")
_DTYPE = re.compile(r"u?int(8|16|32|64)")
# A target that is not learned.
IGNORED = -100

Kind = Literal["tokens", "conversations", "pairs", "labels", "prompts"]
KINDS = get_args(Kind)
# The kinds whose sequences have a side: preferred, or not.
PREFERENCES = ("pairs", "labels")

# The version of manifest.json that this version of Pion writes and reads.
MANIFEST_FORMAT = 1
# The most shards of a data set.
MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``start + rows`` of one file.

    Attributes:
        name: file name, unique within its data set; its ending tells the format.
        sha256: of the whole file, although only some of its rows may belong to this data set.
        bytes: size of the whole file.
        dtype: numpy name of the ids' type.
        flags_sha256: of the flags file, for conversations.
        flags_bytes: size of the flags file.
        remote: where to fetch the file (``repo``, ``revision``, ``path``); None if it is local.

    Raises:
        ValueError: a field is not of its type, or no shard of Pion can have it.
    """

    name: str
    rows: int
    sha256: str
    bytes: int
    dtype: str
    start: int = 0
    flags_sha256: str | None = None
    flags_bytes: int = 0
    remote: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not _matches(_NAME, self.name) or self.name in (".", ".."):
            raise ValueError(f"{self.name!r:.200} is not the name of a shard")
        for name in ("rows", "bytes", "start", "flags_bytes"):
            require_count(name, getattr(self, name))
        for name in ("sha256", "flags_sha256"):
            value = getattr(self, name)
            if not (_matches(_SHA256, value) or (value is None and name == "flags_sha256")):
                raise ValueError(f"{name} is {value!r:.200}; it must be 64 hexadecimal digits")
        if not _matches(_DTYPE, self.dtype):
            raise ValueError(f"dtype is {self.dtype!r:.200}; it must be an integer type")
        if self.remote is not None:
            _check_remote(self.remote)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def require_count(name: str, value: object, least: int = 0) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`, below 2**63."""
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is {value!r:.200}; it must be a whole number from {least}")


def _check_remote(remote: object) -> None:
    """Raise ValueError unless there are the three texts, and the path stays in its repository."""
    if not isinstance(remote, dict) or remote.keys() != {"repo", "revision", "path"}:
        raise ValueError(f"remote is {remote!r:.200}; it must have repo, revision and path")
    if not all(isinstance(text, str) for text in remote.values()):
        raise ValueError(f"remote is {remote!r:.200}; it must have texts")
    if {"", ".", ".."} & set(remote["path"].split("/")):
        raise ValueError(f"remote path {remote['path']!r:.200} leads out of its repository")


@dataclass(frozen=True)
class Manifest:
    """The contents of a data set. Two data sets with equal fingerprints train alike.

    Attributes:
        kind: "tokens" (documents joined by end-of-text and cut into rows), or packed, with flags:
            "conversations", "pairs" (of a chosen and a rejected sequence), "labels" (sequences
            that are desired or not) or "prompts" (one in a row; nothing is learned).
        seq_len: ids in a row.
        vocab_size: every id is below it.
        pad: id that is never learned in rows of kind "tokens"; None if nothing is padded.
        info: notes for people, such as where the data came from; not part of the fingerprint.
        records: of prompts, the sha256 of the file with their answers; None for other kinds.

    Raises:
        ValueError: a field is not of its type, or there are more shards than MOST_SHARDS.
    """

    kind: Kind
    seq_len: int
    vocab_size: int
    shards: tuple[Shard, ...]
    pad: int | None = None
    info: dict[str, Any] = field(default_factory=dict)
    records: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r:.200}; it must be one of {', '.join(KINDS)}")
        for name in ("seq_len", "vocab_size"):
            require_count(name, getattr(self, name), least=1)
        if self.pad is not None:
            require_count("pad", self.pad)
        if not isinstance(self.info, dict):
            raise ValueError(f"info is {self.info!r:.200}; it must be an object")
        if self.records is not None and not _matches(_SHA256, self.records):
            raise ValueError(f"records is {self.records!r:.200}; it must be 64 hexadecimal digits")
        if len(self.shards) > MOST_SHARDS:
            raise ValueError(f"{len(self.shards):,} shards are more than {MOST_SHARDS:,}")

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of exactly the fields that decide a row's content."""
        content: list[Any] = [self.kind, self.seq_len, self.vocab_size, self.pad]
        content += [] if self.records is None else [self.records]
        shards = [[s.name, s.start, s.rows, s.sha256, s.flags_sha256] for s in self.shards]
        return hashlib.sha256(json.dumps([content, shards]).encode()).hexdigest()

    @property
    def shard_rows(self) -> list[int]:
        """The number of rows in each shard."""
        return [shard.rows for shard in self.shards]

    @property
    def rows(self) -> int:
        """The number of rows in all shards, that is, in one epoch."""
        return sum(self.shard_rows)

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON, whole or not at all.

        Raises:
            BadInput: the disk is full or the path can't be written.
        """
        document = {"format": MANIFEST_FORMAT, "fingerprint": self.fingerprint, **asdict(self)}
        if self.records is None:  # other kinds are written as before there were prompts
            del document["records"]
        write_atomically(Path(path), json.dumps(document, indent=1).encode())

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what ``write`` wrote.

        Raises:
            BadInput: the file is missing, isn't a manifest of this format, or has changed since it
                was written.
        """
        try:
            document = parse_object(read_file(path, LARGEST_LISTING), str(path))
            format_number = document.pop("format")
            if type(format_number) is not int or format_number != MANIFEST_FORMAT:
                raise BadInput(
                    f"{path}: manifest format {format_number!r:.20}; this version reads format 1."
                )
            fingerprint = document.pop("fingerprint")
            listed = document.pop("shards")
            if not isinstance(listed, list):
                raise ValueError(f"shards is {listed!r:.200}; it must be a list")
            manifest = cls(shards=tuple(Shard(**shard) for shard in listed), **document)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: can't read this data manifest ({error!r})") from None
        if manifest.fingerprint != fingerprint:
            raise BadInput(
                f"{path}: changed since it was written: its fingerprint is {fingerprint!s:.12}, "
                f"but the fingerprint of its content is {manifest.fingerprint[:12]}. Prepare the "
                "data again."
            )
        return manifest


def split_tail(
    shards: Sequence[Shard], fraction: float
) -> tuple[tuple[Shard, ...], tuple[Shard, ...]]:
    """Hold out the last ``fraction`` of the rows, at least one row.

    Returns:
        The shards to train on and the held-out shards; a file may have rows in both.

    Raises:
        BadInput: nothing would be left to train on.
    """
    total = sum(shard.rows for shard in shards)
    left = min(total, max(1, int(total * fraction)))
    if left == total:
        raise BadInput(f"{total} rows are too few to hold out a fraction of {fraction}.")
    train, held_out = list(shards), []
    while left:
        shard = train.pop()
        taken = min(left, shard.rows)
        rows = shard.rows - taken
        if taken:
            held_out.append(replace(shard, start=shard.start + rows, rows=taken))
        if rows:
            train.append(replace(shard, rows=rows))
        left -= taken
    return tuple(train), tuple(reversed(held_out))


def describe(path: str | Path, seq_len: int) -> Shard:
    """Return the ``Shard`` of another program's file. Reads the file once for its sha256.

    Raises:
        BadInput: the file isn't a shard (see ``open_npy`` and ``open_bin``), or its name has
            control characters.
    """
    path = Path(path)
    rows = open_shard(path, seq_len)
    try:
        return Shard(path.name, len(rows), sha256_file(path), path.stat().st_size, rows.dtype.name)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None


@dataclass(frozen=True)
class Row:
    """One training row: int64 arrays ``(seq_len,)``.

    Attributes:
        targets: the next token of each; -100 where nothing is learned, and at the end.
        documents: number of the conversation that each token belongs to, -1 for padding; None if
            the row is of kind "tokens".
        positions: position of each token in its conversation; None as for ``documents``. In a row
            of preferences, 0 for padding: the row may be longer than the model's context.
        sides: int8 ``(sequences,)``, 1 for a preferred sequence and -1 for another one; None if the
            row is not of preferences.
    """

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray | None = None
    positions: np.ndarray | None = None
    sides: np.ndarray | None = None


class Rows:
    """Reads rows of a data set. Threads may share it.

    ``path_of`` returns the path of a shard's file on this machine, and may block until the file is
    downloaded. At most ``max_open`` shards stay mapped.
    """

    def __init__(
        self, manifest: Manifest, path_of: Callable[[Shard], Path], max_open: int = 64
    ) -> None:
        self.manifest = manifest
        # Threads do not wait for each other: a file may first have to be downloaded.
        self._arrays = lru_cache(max_open)(partial(_mapped, manifest, path_of))

    def row(self, shard: int, row: int, length: int = 1) -> Row:
        """Return row ``row`` of shard number ``shard``, both counted from 0.

        ``length`` rows of text that follow each other are read as one.

        Raises:
            IndexError: the shard has no such row.
            BadInput: the shard's file isn't what the manifest says (see ``open_npy``), or a row of
                pairs has other sequences.
        """
        described = self.manifest.shards[shard]
        if not 0 <= row <= described.rows - length:
            raise IndexError(f"{described.name} has {described.rows} rows and no row {row}")
        ids, flags = self._arrays(shard)
        first = described.start + row
        tokens = ids[first : first + length].astype(np.int64).ravel()
        if flags is None:
            targets = _next_tokens(tokens)
            if self.manifest.pad is not None:
                targets[targets == self.manifest.pad] = IGNORED
            return Row(tokens, targets)
        marked = flags[described.start + row]
        if self.manifest.kind not in PREFERENCES:
            return _conversation_row(tokens, marked)
        if self.manifest.kind == "pairs":
            require_pairs(marked, f"{described.name} row {described.start + row}")
        return _preference_row(tokens, marked)

    def release(self) -> None:
        """Unmap all shards, so that the disk space of one whose file will be deleted is freed.

        The others are mapped again when their rows are read.
        """
        self._arrays.cache_clear()


def _mapped(
    manifest: Manifest, path_of: Callable[[Shard], Path], number: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the ids and the flags of a shard, mapped from its files."""
    shard = manifest.shards[number]
    path = path_of(shard)
    ids = open_shard(path, manifest.seq_len)
    has_flags = manifest.kind != "tokens"
    flags = open_npy(flags_path(path), manifest.seq_len) if has_flags else None
    needed = shard.start + shard.rows
    if len(ids) < needed or (flags is not None and len(flags) != len(ids)):
        raise BadInput(
            f"{path}: has {len(ids):,} rows, but its manifest needs {needed:,}, with flags for "
            f"every row. Prepare the data again."
        )
    return ids, flags


def flags_path(path: Path) -> Path:
    """Return where the flags of the rows in shard ``path`` are."""
    return path.with_name(f"{path.stem}.flags.npy")


def _next_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return the next token of each; nothing follows the last one."""
    targets = np.full_like(tokens, IGNORED)
    targets[:-1] = tokens[1:]
    return targets


def _conversation_row(tokens: np.ndarray, flags: np.ndarray) -> Row:
    targets = _next_tokens(tokens)
    documents = np.where(flags & PADDING, -1, np.cumsum((flags & STARTS) != 0) - 1)
    begins = np.concatenate(([True], documents[1:] != documents[:-1]))
    # The first token of a conversation can't be predicted from the conversation before it.
    targets[:-1][(((flags & LEARNED) == 0) | begins)[1:]] = IGNORED
    index = np.arange(len(tokens))
    positions = index - np.maximum.accumulate(np.where(begins, index, 0))
    return Row(tokens, targets, documents, positions)


def _preference_row(tokens: np.ndarray, flags: np.ndarray) -> Row:
    row = _conversation_row(tokens, flags)
    assert row.positions is not None
    # Positions are looked up in tables as long as the model's context, also those of padding.
    row.positions[(flags & PADDING) != 0] = 0
    return replace(row, sides=sides_of(flags[None])[0])
