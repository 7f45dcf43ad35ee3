"""Cut the sources of a job: their heads are files that the job's own `prepare` can read."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pion.data.documents.file_to_documents import LONGEST_LINE, parquet_file
from pion.data.documents.find_files import PACKED_SUFFIXES, PARQUET_SUFFIXES
from pion.data.documents.unpack import unpacked
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import PionError
from pion.untrusted import open_file
from pipeline.data.sources import SAMPLED, find_input, source_path
from pipeline.job import BinShards, HubDataset, Job, JsonlFiles, NpyShards, ParquetFiles, TextFiles
from pipeline.job.model_section import TrainTokenizer
from pipeline.job.stages import data_key

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

# Sources whose rows are counted in their headers.
Shards = NpyShards | BinShards
# A source of at most so many bytes is rehearsed whole, of a larger one about so many bytes. Each
# record may have a mistake that would end a run, so more of them are read.
TEXT_BYTES, RECORD_BYTES = (4_000_000, 1_000_000), (8_000_000, 4_000_000)
# Of a larger source, so many files are read at least, and no more than such a part of one.
FILES = 32
# So many bytes after a head are unpacked, too.
MORE_BYTES = 1 << 24
# So much of a head of text is held out.
HEAD_HELD_OUT = 0.1
# A vocabulary that is trained on the head of a text has at most so many entries.
ENTRIES = 2048
# The bytes of an id of English text, by the entries of the vocabulary (measured).
BYTES_PER_ID = {2_048: 3.0, 4_096: 3.4, 8_192: 3.75, 16_384: 3.95, 32_768: 4.05}


@dataclass
class Head:
    """A job whose sources are cut.

    Attributes:
        job: the copy of the job. Its batches have one row, unless nothing is cut.
        factors: by the key of each source that is cut, how many times more there is of it; None:
            nobody knows.
        own_tokenizer: whether the ids are the run's. Else its vocabulary learns from more text.
        shorter: how many times as many ids the job's own vocabulary writes: fewer.
        held_out: the job's share of the text.
        text_bytes: of each source of `data`, about how many bytes of text there are, unpacked.
        texts: which sources of `data` the copy has. It has no tokenized ones.
        names: what messages say in place of the heads' folders and keys.
    """

    job: Job
    factors: dict[str, float | None] = field(default_factory=dict)
    own_tokenizer: bool = True
    shorter: float = 1.0
    held_out: float = 0.0
    text_bytes: dict[str, float] = field(default_factory=dict)
    texts: list[int] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def is_whole(self, section: str) -> bool:
        """Return whether all of a section, and of what its tokenizer learns from, is there."""
        return self.own_tokenizer and not any(k.startswith(f"{section}.") for k in self.factors)

    def more(self, key: str) -> float:
        """Return how many times more there is of a source, as far as is known."""
        return self.factors.get(key) or 1.0

    def factor(self, key: str) -> float:
        """Return how many times more rows there are of a source than in its head."""
        times = self.more(key) * self.shorter
        if not key.startswith("data.") or self.is_whole("data"):
            return times
        return times * (1 - self.held_out) / (1 - HEAD_HELD_OUT)

    def restore_names(self, words: str) -> str:
        """Return a message with the names of the job's own files."""
        for place, name in self.names.items():
            words = words.replace(place, name)
        return words


def cut(job: Job, sections: Container[str], folder: Path, largest: float = math.inf) -> Head:
    """Return the job with the head of each source of these sections, below `folder`. A head has at
    most about `largest` bytes."""
    head = Head(job.model_copy(deep=True))
    for number, (key, source) in enumerate(head.job.sources()):
        if key.partition(".")[0] not in sections:
            continue
        if isinstance(source, HubDataset):
            most = source.max_documents
            if most is None or most > SAMPLED:
                source.max_documents, head.factors[key] = SAMPLED, None
        elif isinstance(source, TextFiles | JsonlFiles | ParquetFiles):
            try:
                path, files = source_path(job, source), find_input(job, source, key).files
            except PionError:  # `prepare` says it
                continue
            total, is_text = sum(file.stat().st_size for file in files), key.startswith("data.")
            packed = any(file.suffix in (*PACKED_SUFFIXES, *PARQUET_SUFFIXES) for file in files)
            limits = TEXT_BYTES if is_text else RECORD_BYTES
            limit, most = (int(min(largest, size)) for size in limits)
            head.text_bytes[key] = total
            if total <= limit and not packed:
                continue
            is_folder = path.is_dir() and files != (path,)
            root = path if is_folder else next(p for p in path.parents if p.is_dir())
            place = folder / str(number)
            most = limit if total <= limit else most
            read, written, whole = _copy(files, root, place, most, total)
            source.path = str(place / _plain(path.relative_to(root)))
            head.names[str(place)] = str(root)
            head.text_bytes[key] = written * total / max(1, read)
            if not whole:
                head.factors[key] = total / max(1, read)
    every = job.data.sources
    head.texts = [n for n, source in enumerate(every) if not isinstance(source, Shards)]
    head.job.data.sources = [head.job.data.sources[number] for number in head.texts]
    moved = [(new, old) for new, old in enumerate(head.texts) if new != old]
    head.names |= {f"data.sources.{new}": f"data.sources.{old}" for new, old in reversed(moved)}
    _shrink(head, shards=len(head.texts) < len(every))
    return head


def _shrink(head: Head, *, shards: bool) -> None:
    """Let the cut job ask for no more than its heads can give."""
    job, train = head.job, head.job.tokenizer and head.job.tokenizer.train
    if train and not head.is_whole("data"):
        _use_fewer_entries(head, train)
    for stage in job.train_stages:
        section = data_key(stage)
        if not head.is_whole(section) or (section == "data" and shards):
            job.section(stage).global_batch = 1
            job.section(stage).phases = []
    if not head.is_whole("data"):  # of a head, the job's share may not fill a row
        head.held_out, job.data.held_out = job.data.held_out, HEAD_HELD_OUT


def _use_fewer_entries(head: Head, train: TrainTokenizer) -> None:
    head.own_tokenizer = False
    head.shorter = _bytes_per_id(ENTRIES) / _bytes_per_id(train.vocab_size)
    train.vocab_size = min(train.vocab_size, ENTRIES)


def train_stand_in(head: Head, part: str, folder: Path) -> Path | None:
    """Train a vocabulary on the files of a part, where the run's own text can't be read in advance;
    return it. None: the part has no files that are text."""
    job, section = head.job, head.job.tokenizer
    sources = enumerate(job.conversations(part).sources)
    found = [find_input(job, source, f"{part}.sources.{n}") for n, source in sources]
    files = [file for one in found for file in one.files if file.suffix not in PARQUET_SUFFIXES]
    if not files or section is None or section.train is None:
        return None
    texts = (_beginning(file).decode(errors="ignore") for file in files[:FILES])
    _use_fewer_entries(head, section.train)
    train_bpe(texts, section.train.vocab_size).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _beginning(file: Path) -> bytes:
    with open_file(file) as stream:
        return stream.read(TEXT_BYTES[1])


def _bytes_per_id(entries: int) -> float:
    return next((size for most, size in BYTES_PER_ID.items() if entries <= most), 4.05)


def _plain(path: Path) -> Path:
    """Return the path of a file once it is unpacked."""
    return path.with_suffix("") if path.suffix in PACKED_SUFFIXES else path


def _copy(
    files: Sequence[Path], root: Path, place: Path, limit: int, total: int
) -> tuple[float, int, bool]:
    """Copy about `limit` bytes of files below `root`, which have `total`; return how many stored
    bytes were read, how many bytes were written, and whether this is all."""
    every = len(files)
    count = min(every, max(FILES, limit * every // max(1, total)))  # as many as have these bytes
    picked = [files[i * every // count] for i in range(count)]
    read, written, whole = 0.0, 0, count == every
    for file in picked:
        target = place / _plain(file.relative_to(root))
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = _copy_rows if file.suffix in PARQUET_SUFFIXES else _copy_bytes
        stored, size, ended = copy(file, target, limit // min(count, FILES))
        read, written, whole = read + stored, written + size, whole and ended
    return read, written, whole


def _copy_bytes(file: Path, target: Path, most: int) -> tuple[float, int, bool]:
    with open_file(file) as stored, unpacked(stored, file) as stream, target.open("wb") as out:
        size = out.write(stream.read(most))
        size += out.write(stream.readline(LONGEST_LINE))
        total = file.stat().st_size
        if stream is stored:
            return size, size, size == total
        # A packed file is read in large blocks: only after several, their share of it is known.
        more = 0
        while part := stream.read(MORE_BYTES - more):
            more += len(part)
        return min(stored.tell(), total) * size / max(1, size + more), size, not more


def _copy_rows(file: Path, target: Path, most: int) -> tuple[float, int, bool]:
    import pyarrow.parquet

    size = rows = 0
    with parquet_file(file) as table:
        every = table.metadata
        with pyarrow.parquet.ParquetWriter(target, table.schema_arrow) as out:
            for batch in table.iter_batches(256):
                out.write_batch(batch)
                size, rows = size + batch.nbytes, rows + batch.num_rows
                if size >= most:
                    break
    whole = rows == every.num_rows
    # The first records may be short, so their number says little of the bytes behind them.
    share = 1.0 if whole else _bytes(pyarrow.parquet.read_metadata(target)) / _bytes(every)
    return file.stat().st_size * min(1.0, share), size, whole


def _bytes(parquet: FileMetaData) -> int:
    """Return how many bytes the columns of a Parquet file have before they are compressed."""
    return sum(parquet.row_group(i).total_byte_size for i in range(parquet.num_row_groups))
