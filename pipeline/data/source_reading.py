"""prepare: how a source is read, and the rows of a source of text, in this process or in pieces by
many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pion.data.chat.chat_format import ChatFormat
from pion.data.documents.file_to_documents import Document
from pion.untrusted import LARGEST_TOKENIZER, read_file
from pipeline.console.messages import Note, Say
from pipeline.data.encode_piece import Reading, gone
from pipeline.data.foreign_shards import take_hub_shards, take_local_shards
from pipeline.data.pieces import PIECE_BYTES, cut_pieces, has_pieces, too_large
from pipeline.data.remarks import Remarks
from pipeline.data.sources import Input, longest_line, texts
from pipeline.data.splits import RowFormat
from pipeline.data.tasks import InThisProcess, Tasks, WithPauses
from pipeline.data.text_to_rows import (
    FilePieces,
    read_pieces,
    write_document_rows,
    write_piece_rows,
)
from pipeline.job import BinShards, HubNpyShards, Job, NpyShards

# Less text is prepared in this process: it takes 10 seconds to start others.
LEAST_BYTES = 256_000_000


@dataclass(frozen=True)
class PrepareOptions:
    """How data is prepared, besides what the job says.

    Attributes:
        tasks: starts what does the work, and ends it.
        finished: is told each file of the data that is finished.
        wait: returns once other files may be finished.
        least: so many bytes of files are prepared in pieces; None: LEAST_BYTES.
        piece_bytes: about so many bytes are a piece; None: PIECE_BYTES.
        find: returns the folder of finished data with a fingerprint; None: there is none, so
            prepare it.
        rows_of: puts the rows of a source with a fingerprint into a folder, and returns their
            report; None: no finished data has them.
    """

    tasks: Callable[[], AbstractContextManager[Tasks]] = lambda: nullcontext(InThisProcess())
    finished: Callable[[Path], object] = lambda path: None
    wait: Callable[[], None] = lambda: None
    least: int | None = None
    piece_bytes: int | None = None
    find: Callable[[str], Path | None] = lambda fingerprint: None
    rows_of: Callable[[str, Path], dict[str, Any] | None] = lambda fingerprint, place: None

    @contextmanager
    def tasks_for(self, inputs: Sequence[Input]) -> Iterator[Tasks | None]:
        """Yield what does the work with these sources; None if there is little."""
        files = [
            path
            for source_input in inputs
            if has_pieces(source_input.source)
            for path in source_input.files
        ]
        least = LEAST_BYTES if self.least is None else self.least
        if not files or sum(path.stat().st_size for path in files) < least:
            yield None
            return
        with self.tasks() as tasks:
            yield WithPauses(tasks, self.wait)


@dataclass(frozen=True)
class SourceReading:
    """A source that is read.

    Attributes:
        job: the job.
        found: the source.
        kept: says of each of its documents, in order, whether to keep it; None: all are kept.
        tasks: what prepares it in pieces; None: this process prepares it.
        pieces: its files in pieces, which were read; None: its documents are in no pieces.
    """

    job: Job
    found: Input
    kept: Callable[[Document], bool] | None
    tasks: Tasks | None
    pieces: FilePieces | None = None


def write_text(
    reading: SourceReading, written: ChatFormat, place: Path, rows: RowFormat, say: Say
) -> dict[str, Any]:
    """Write the rows of a source of text into the folder `place`; return its report.

    Raises BadInput as `write_document_rows` and `write_piece_rows` do, and for shards that can't be
    used.
    """
    source_input, tokenizer = reading.found, written.tokenizer
    if isinstance(source_input.source, NpyShards | BinShards):
        return take_local_shards(source_input.files, tokenizer, place, rows, say)
    if isinstance(source_input.source, HubNpyShards):
        return take_hub_shards(source_input, tokenizer, place, rows, say)
    remarks, label = (
        Remarks(tokenizer.replaced(), source_input.left_out),
        f"tokenise {source_input.name}",
    )
    if reading.pieces is None:
        documents = texts(reading.job, source_input, remarks, reading.kept)
        report = write_document_rows(documents, tokenizer, place, rows, (label, say))
    else:
        report = write_piece_rows(reading.pieces, tokenizer, place, rows, remarks, (label, say))
    return report | remarks.report()


def read_text(
    reading: SourceReading, tokenizer: Path, piece_bytes: int | None, say: Say
) -> SourceReading:
    """Return a source of text with its pieces, if it has some. They are read once, before the rows
    of any source are written. The folder `tokenizer` has the tokenizer.

    Which documents are kept is decided by their number, so only a source of which all are kept has
    pieces. Raises BadInput for the first mistake in the text.
    """
    source_input, job, tasks = reading.found, reading.job, reading.tasks
    if tasks is None or reading.kept is not None or not has_pieces(source_input.source):
        return reading
    longest = longest_line(job)
    try:
        pieces = cut_pieces(
            source_input.source, source_input.files, longest, piece_bytes or PIECE_BYTES
        )
    except FileNotFoundError as error:
        raise gone(error.filename) from None
    if (large := too_large(pieces)) is not None:
        say(Note(f"{source_input.key}: {large}, so one process tokenizes this source"))
        return reading
    held_out, files = job.data.held_out, tokenizer_files(tokenizer)
    how = Reading(
        source_input.source, source_input.key, longest, held_out, source_input.held_out, files
    )
    source = read_pieces(how, pieces, tasks, say)
    # Without any document, reading it here says why.
    has_text = any(counted.documents for counted in source.counted)
    return replace(reading, pieces=source) if has_text else reading


def tokenizer_files(folder: Path) -> tuple[tuple[str, bytes], ...]:
    """Return the names and contents of the tokenizer.json in a folder and of what is next to it:
    another process, or machine, may not have the folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return tuple((path.name, read_file(path, LARGEST_TOKENIZER)) for path in files)
