"""The job's data sources as streams of texts and conversations, each marked held out or not.

A hash of the text (for the standard library, of its file) decides whether the text is held out, so
every copy of a text is on the same side.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pion.data.chat.messages import Conversation, turns_of, with_texts
from pion.data.documents import python_docs, python_qa
from pion.data.documents.file_to_documents import (
    Document,
    Note,
    Record,
    Span,
    jsonl_records,
    parquet_records,
    plain,
    record_documents,
    separate,
    text_documents,
    unnoted,
)
from pion.data.documents.find_files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
    by_splits,
    find_files,
)
from pion.data.records.layouts import COLUMNS, read_conversation
from pion.errors import BadInput
from pipeline.data.remarks import Remarks
from pipeline.data.s3_files import S3File
from pipeline.job import (
    BinShards,
    HubDataset,
    HubNpyShards,
    HubTexts,
    Job,
    JsonlFiles,
    JsonlTexts,
    NpyShards,
    ParquetFiles,
    ParquetTexts,
    PythonDocs,
    PythonDocsQA,
    Source,
    TextFiles,
)
from pipeline.job.data_section import in_bucket

T = TypeVar("T")
# Given the number of a source, returns a function that says of each of its documents, in order,
# whether to keep it.
Keep = Callable[[int], Callable[[Document], bool]]
LONG_CHARS = 1 << 16
# Of a data set on the Hub, so many conversations are looked at before anything is rented.
SAMPLED = 1000
SUFFIXES = {
    "text": TEXT_SUFFIXES,
    "jsonl": JSONL_SUFFIXES,
    "parquet": PARQUET_SUFFIXES,
    "npy": (".npy",),
    "bin": (".bin",),
}


@dataclass(frozen=True)
class Talk:
    """A conversation of a source.

    Attributes:
        conversation: the messages; a text says why it can't be used.
        required: whether it must be usable: it was looked at before anything was rented.
    """

    conversation: Conversation | str
    required: bool


# Lines that show a record as the model will see it, with what is learned in ⟦ and ⟧, and its ids.
Shown = tuple[Sequence[str], Sequence[int]]


@dataclass(frozen=True)
class Input:
    """A source of the job, found and pinned.

    `key` is its key in the job. `state` changes when the input changes: it covers the files with
    their sizes and times, a Hub commit, or a Python version. `held_out` are the files that
    are held out; None: names don't say it. `left_out` says why files are not read.
    """

    source: Source
    key: str
    state: str
    files: tuple[Path, ...] = ()
    commit: str = ""
    held_out: frozenset[Path] | None = None
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What people call the source."""
        fields = self.source.model_dump()
        return str(fields.get("repo") or fields.get("path") or fields["kind"])

    @property
    def spans(self) -> list[Span]:
        """The files, each as a whole."""
        named = self.held_out
        return [
            Span(file, held_out=None if named is None else file in named) for file in self.files
        ]


def source_path(
    job: Job, source: TextFiles | JsonlFiles | ParquetFiles | NpyShards | BinShards
) -> Path:
    """Return where the files of a source are, on this machine or in a bucket. Raises BadInput for a
    path that no file can have."""
    if in_bucket(source):
        return S3File.of(source.path.rstrip("/"))
    return job.input_path(source.path)


def find_input(job: Job, source: Source, key: str, commit: str | None = None) -> Input:
    """Find a source's files or repository; `commit` is the commit pinned earlier, if any.

    Raises BadInput if there is nothing to read, and Interrupted if a bucket can't be reached.
    """
    if isinstance(source, TextFiles | JsonlFiles | ParquetFiles | NpyShards | BinShards):
        path = source_path(job, source)
        if path.suffix == ".csv":
            raise BadInput(
                f"{key}.path: {path} is a table. `pion new {path.name}` writes it as JSON Lines"
            )
        every, left_out = find_files(path, SUFFIXES[source.kind], f"{key}.path")
        splits = by_splits(path, every, records=not isinstance(source, TextFiles))
        stats = [(str(file), file.stat()) for file in splits.files]
        sizes = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        state = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
        remarks = tuple(filter(None, (*left_out, splits.words)))
        return Input(source, key, state, splits.files, "", splits.held_out, remarks)
    if isinstance(source, HubDataset | HubNpyShards):
        from pipeline.data.hub import pin

        commit = commit or pin(source.repo, source.revision)
        return Input(source, key, commit, commit=commit)
    return Input(source, key, sys.version)


def texts(
    job: Job,
    found: Input,
    remarks: Remarks | None = None,
    kept: Callable[[Document], bool] | None = None,
) -> Iterator[tuple[bool, str]]:
    """Yield (held out?, text) of every document of a text source, and note it in `remarks`.

    `kept`, if it is there, is asked about every document, in their order: others are left out. If a
    document is longer than 64K characters, only its end is held out, so a corpus of one long file
    has both parts. Raises BadInput for a file that can't be read and for an empty corpus.
    """
    every = documents(job, found, remarks)
    for document in every if kept is None else filter(kept, every):
        if remarks is not None and not isinstance(found.source, PythonDocs):
            remarks.replaced.look(document.text, document.origin)
        yield from split_text(document, job.data.held_out)


def split_text(document: Document, share: float) -> Iterator[tuple[bool, str]]:
    """Yield (held out?, text) of a document of which a `share` is held out; see `texts`."""
    text = document.text
    if document.held_out is not None:
        yield document.held_out, text
        return
    if len(text) <= LONG_CHARS:
        yield python_docs.is_held_out(text, share), text
        return
    cut = text.find("\n", int(len(text) * (1 - share))) + 1 or len(text)
    yield False, text[:cut]
    if text[cut:].strip():
        yield True, text[cut:]


def documents(job: Job, found: Input, remarks: Remarks | None = None) -> Iterator[Document]:
    """Yield every document of a text source, in order, and note in `remarks` what texts have.

    Raises BadInput as `texts` does.
    """
    if isinstance(found.source, PythonDocs):
        every = python_docs.documents(found.source.code)
        for document in python_qa.documents() if found.source.questions else every:
            held_out = python_docs.is_held_out(document.origin, job.data.held_out)
            yield replace(document, held_out=held_out)
        return
    note = unnoted if remarks is None else remarks.note_text
    for document in _documents(job, found, note):
        yield from separate(document, note)


def is_held_out(job: Job, document: Document) -> bool:
    """Return whether a document is held out as a whole."""
    if len(document.text) > LONG_CHARS and document.held_out is None:
        return False  # only its end is
    return _is_out(document, document.text, job.data.held_out)


def _is_out(item: Document | Record, text: str, share: float) -> bool:
    """Return what the name of an item's file says, or else the hash of its text."""
    return python_docs.is_held_out(text, share) if item.held_out is None else item.held_out


def conversations(
    job: Job, found: Input, *, own: bool, remarks: Remarks | None = None
) -> Iterator[tuple[bool, Talk]]:
    """Yield (held out?, conversation) of every conversation of a source, and note it in `remarks`.

    With `own`, they are for Pion's own chat format, else for a model's template. Of a data set on
    the Hub, conversations after the first SAMPLED may be unusable. Questions about the standard
    library are held out with the files that pretraining holds out.
    Raises BadInput for another record that is no conversation, or from which nothing is learned.
    """
    if isinstance(found.source, PythonDocsQA):
        for dialogue in python_qa.dialogues():
            messages = [{"role": turn.role, "content": turn.text} for turn in dialogue.turns]
            held_out = python_docs.is_held_out(dialogue.origin, job.data.held_out)
            yield held_out, Talk(Conversation(messages, None, dialogue.origin), required=True)
        return
    assert job.sft is not None
    parse = partial(read_conversation, own=own)
    for record, talk, required in parsed(job, found, parse, remarks):
        if isinstance(talk, str):
            yield False, Talk(talk, required)
            continue
        texts = texts_of(talk, own=own)
        if remarks is not None:
            remarks.note(talk.seen, texts if own else [talk.messages, talk.tools], record.origin)
        yield _is_out(record, "\n".join(texts), job.sft.held_out), Talk(talk, required)


def held_out_by_sft(job: Job, source: Source) -> bool:
    """Return whether fine-tuning learns from the same records: then both hold out the same ones.

    Those about the standard library are held out by their files, whatever learns from them.
    """
    if isinstance(source, PythonDocsQA) or job.sft is None:
        return False
    same = [source_fields.model_dump(exclude={"weight"}) for source_fields in job.sft.sources]
    return source.model_dump(exclude={"weight"}) in same


def parsed(
    job: Job,
    found: Input,
    parse: Callable[[Any, str], T],
    remarks: Remarks | None,
    columns: Container[str] = COLUMNS,
) -> Iterator[tuple[Record, T | str, bool]]:
    """Yield every record of a source, what `parse` returns of its value and origin, and whether it
    must be usable: of a data set on the Hub, only the first SAMPLED must. Its texts are noted.

    Of others, a text says why it can't be used. Of tables, only these `columns` are read. Raises
    the BadInput of `parse` for one that must.
    """
    on_hub, note = isinstance(found.source, HubDataset), remarks.note_text if remarks else unnoted
    for number, record in enumerate(records(job, found, columns)):
        required = not on_hub or number < SAMPLED
        try:
            texts = with_texts(record.value, partial(plain, where=record.origin, note=note))
            made: T | str = parse(texts, record.origin)
        except BadInput as error:
            if required:
                raise
            made = str(error)
        yield record, made, required


def texts_of(conversation: Conversation, *, own: bool) -> list[str]:
    """Return the texts of a conversation, whose hash decides whether it is held out."""
    if own:
        return [turn.text for turn in turns_of(conversation)]
    return [message["content"] or "" for message in conversation.messages]


def _documents(job: Job, found: Input, note: Note) -> Iterator[Document]:
    source = found.source
    if isinstance(source, TextFiles):
        return text_documents(found.spans, source.split, found.key, longest_line(job))
    assert isinstance(source, JsonlTexts | ParquetTexts | HubTexts)
    return record_documents(records(job, found, (source.field,)), source.field, found.key, note)


def records(job: Job, found: Input, columns: Container[str]) -> Iterator[Record]:
    """Yield the records of a source. Of tables, only these `columns` are read.

    Raises BadInput for a file or a repository that can't be read, and for a source without records.
    """
    source, longest = found.source, longest_line(job)
    if isinstance(source, JsonlFiles):
        return jsonl_records(found.spans, found.key, longest)
    if isinstance(source, ParquetFiles):
        return parquet_records(found.spans, found.key, columns, longest)
    if isinstance(source, HubDataset):
        from pipeline.data.hub import hub_records

        return hub_records(source, found.commit, columns)
    raise BadInput(f"{found.key}: this kind of source has no records")


def longest_line(job: Job) -> int:
    """Return the most bytes of a line that a job reads."""
    return int(job.data.max_line_mb * 1e6)
