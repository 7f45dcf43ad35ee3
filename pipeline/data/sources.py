"""The job's data sources as streams of texts and conversations, each marked held out or not.

A hash of the text (for the standard library, of its file) decides whether the text is held out, so
every copy of a text is on the same side.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pion.data.chat.conversation import CONVERSATION_KEYS, ROLES, Turn, parse_conversation, role_of
from pion.data.chat.messages import KNOWN_ROLES, Conversation, parse_messages, with_texts
from pion.data.documents import python_docs, python_qa
from pion.data.documents.file_to_documents import (
    Document,
    Record,
    Span,
    jsonl_records,
    parquet_records,
    record_documents,
    text_documents,
    whole_characters,
)
from pion.data.documents.find_files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
    by_splits,
    find_files,
)
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.errors import BadInput
from pion.later_fields import shown
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

# Given the number of a source, returns a function that says of each of its documents, in order,
# whether to keep it.
Keep = Callable[[int], Callable[[Document], bool]]
# What is counted of system messages; `Remarks` has attributes of these names.
SYSTEMS = ("systems", "lost_systems")
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


@dataclass
class Remarks:
    """What is worth saying about the texts of a source.

    Attributes:
        replaced: the characters that the vocabulary lacks.
        left_out: why files of the source are not read.
        blank: how many records have no text, or a blank one.
        roles: the other names of roles, and the role that each was read as.
        systems: how many system messages there are.
        lost_systems: how many of them the model's chat template leaves out.
    """

    replaced: ReplacedCharacters
    left_out: tuple[str, ...] = ()
    blank: int = 0
    roles: dict[str, str] = field(default_factory=dict)
    systems: int = 0
    lost_systems: int = 0

    def note_roles(self, record: dict[str, Any]) -> None:
        """Note the other names of roles in a conversation that could be parsed."""
        shared = "conversations" in record
        for turn in record["conversations" if shared else "messages"]:
            self.note_role(turn["from" if shared else "role"])

    def note_blank(self) -> None:
        """Note a record without text."""
        self.blank += 1

    def note_role(self, name: str) -> None:
        """Note a role if it has another name."""
        if name not in ROLES and name not in KNOWN_ROLES and (role := role_of(name)):
            self.roles[name] = role

    def note_systems(self, report: dict[str, Any]) -> None:
        """Note the system messages that were counted while the rows were written."""
        self.systems, self.lost_systems = (
            report[f"train_{name}"] + report[f"held_out_{name}"] for name in SYSTEMS
        )

    def in_words(self) -> list[str]:
        """Return a sentence for each remark."""
        read = ", ".join(f"{shown(name)} as {role}" for name, role in sorted(self.roles.items()))
        lost = (
            f"{self.lost_systems:,} of {self.systems:,} system messages are not in the text, "
            "because the model's chat template leaves them out"
        )
        remarks = (
            *self.left_out,
            f"{self.blank:,} records have no text and are left out" if self.blank else "",
            self.replaced.in_words(),
            read and f"roles with other names: {read}",
            lost if self.lost_systems else "",
        )
        return [words for words in remarks if words]


@dataclass(frozen=True)
class Talk:
    """A conversation of a source, for a model's own chat template.

    Attributes:
        conversation: the messages; a text says why it can't be used.
        required: whether it must be usable: it was looked at before anything was rented.
    """

    conversation: Conversation | str
    required: bool


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
    def spans(self) -> list[Span]:
        """The files, each as a whole."""
        named = self.held_out
        return [
            Span(file, held_out=None if named is None else file in named) for file in self.files
        ]


def find_input(job: Job, source: Source, key: str, commit: str | None = None) -> Input:
    """Find a source's files or repository; `commit` is the commit pinned earlier, if any.

    Raises BadInput if there is nothing to read.
    """
    if isinstance(source, TextFiles | JsonlFiles | ParquetFiles | NpyShards | BinShards):
        path = job.input_path(source.path)
        every, left_out = find_files(path, SUFFIXES[source.kind], f"{key}.path")
        splits = by_splits(path, every, records=not isinstance(source, TextFiles))
        stats = [(str(file), file.stat()) for file in splits.files]
        sizes = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        state = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
        words = tuple(filter(None, (*left_out, splits.words)))
        return Input(source, key, state, splits.files, "", splits.held_out, words)
    if isinstance(source, HubDataset | HubNpyShards):
        from pipeline.data.hub import pin

        commit = commit or pin(source.repo, source.revision)
        return Input(source, key, commit, commit=commit)
    return Input(source, key, sys.version)


def keep_all(source: int) -> Callable[[Document], bool]:
    """Keep every document."""
    return lambda document: True


def texts(
    job: Job,
    found: Input,
    remarks: Remarks | None = None,
    kept: Callable[[Document], bool] = lambda document: True,
) -> Iterator[tuple[bool, str]]:
    """Yield (held out?, text) of every document of a text source, and note it in `remarks`.

    `kept` is asked about every document, in their order: others are left out. If a document is
    longer than 64K characters, only its end is held out, so a corpus of one long file has both
    parts. Raises BadInput for a file that can't be read and for an empty corpus.
    """
    for document in filter(kept, documents(job, found, remarks)):
        text = document.text
        if remarks is not None and not isinstance(found.source, PythonDocs):
            remarks.replaced.look(text, document.origin)
        if isinstance(found.source, PythonDocs):
            yield is_held_out(job, found, document), text
        else:
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
    """Yield every document of a text source, in order. Records without text are noted in `remarks`.

    Raises BadInput as `texts` does.
    """
    if isinstance(found.source, PythonDocs):
        yield from python_docs.documents(found.source.code)
        return
    for document in _documents(job, found, remarks):
        yield replace(document, text=whole_characters(document.text))


def is_held_out(job: Job, found: Input, document: Document) -> bool:
    """Return whether a document is held out as a whole."""
    if isinstance(found.source, PythonDocs):
        return python_docs.is_held_out(document.origin, job.data.held_out)
    if len(document.text) > LONG_CHARS and document.held_out is None:
        return False  # only its end is
    return _is_out(document, document.text, job.data.held_out)


def _is_out(item: Document | Record, text: str, share: float) -> bool:
    """Return what the name of an item's file says, or else the hash of its text."""
    return python_docs.is_held_out(text, share) if item.held_out is None else item.held_out


def conversations(
    job: Job, found: Input, remarks: Remarks | None = None
) -> Iterator[tuple[bool, list[Turn]]]:
    """Yield (held out?, turns) of every conversation of a source, and note it in `remarks`.

    Questions about the standard library are held out with the files that pretraining holds out.
    Raises BadInput for a record that is not a conversation or has no assistant turn.
    """
    assert job.sft is not None
    if isinstance(found.source, PythonDocsQA):
        for dialogue in python_qa.dialogues():
            yield python_docs.is_held_out(dialogue.origin, job.data.held_out), list(dialogue.turns)
        return
    for record in records(job, found, CONVERSATION_KEYS):
        turns = parse_conversation(record.value, record.origin)
        turns = [Turn(turn.role, whole_characters(turn.text)) for turn in turns]
        text = "\n".join(turn.text for turn in turns)
        if remarks is not None:
            remarks.replaced.look([turn.text for turn in turns], record.origin)
            remarks.note_roles(record.value)
        yield _is_out(record, text, job.sft.held_out), turns


def talks(job: Job, found: Input, remarks: Remarks | None = None) -> Iterator[tuple[bool, Talk]]:
    """Yield (held out?, conversation) of every conversation of a source, with calls and tools.

    They are held out and counted as in `conversations`. Of a data set on the Hub, conversations
    after the first SAMPLED may be unusable.
    """
    assert job.sft is not None
    if isinstance(found.source, PythonDocsQA):
        for dialogue in python_qa.dialogues():
            messages = [{"role": turn.role, "content": turn.text} for turn in dialogue.turns]
            held_out = python_docs.is_held_out(dialogue.origin, job.data.held_out)
            yield held_out, Talk(Conversation(messages, None, dialogue.origin), required=True)
        return
    on_hub = isinstance(found.source, HubDataset)
    for number, record in enumerate(records(job, found, (*CONVERSATION_KEYS, "tools"))):
        required = not on_hub or number < SAMPLED
        try:
            talk = parse_messages(with_texts(record.value, whole_characters), record.origin)
        except BadInput as error:
            if required:
                raise
            yield False, Talk(str(error), required)
            continue
        if remarks is not None:
            remarks.replaced.look([talk.messages, talk.tools], record.origin)
            remarks.note_roles(record.value)
        text = "\n".join(message["content"] or "" for message in talk.messages)
        yield _is_out(record, text, job.sft.held_out), Talk(talk, required)


def _documents(job: Job, found: Input, remarks: Remarks | None) -> Iterator[Document]:
    source = found.source
    if isinstance(source, TextFiles):
        return text_documents(found.spans, source.split, found.key, longest_line(job))
    assert isinstance(source, JsonlTexts | ParquetTexts | HubTexts)
    blank = (lambda: None) if remarks is None else remarks.note_blank
    return record_documents(records(job, found, (source.field,)), source.field, found.key, blank)


def records(job: Job, found: Input, columns: tuple[str, ...]) -> Iterator[Record]:
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
