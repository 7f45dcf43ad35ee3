"""What data says: how much, how long, which languages, copies, what can't be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pion.data.chat.messages import with_texts
from pion.data.documents import languages
from pion.data.documents.file_to_documents import whole_characters
from pion.data.preference.layouts import parse_preference
from pion.data.prompt.layouts import parse_question
from pion.data.records.fields import Fields, is_null
from pion.data.records.layouts import COLUMNS, HISTORY, SYSTEMS, TEXT, TOOLS, read_conversation
from pion.data.records.turns import ROLE_KEYS, role_said
from pion.errors import BadInput
from pipeline.console.formats import amount, counted, size
from pipeline.job.stages import WORDS
from pipeline.new.files import IN_WORDS, Group
from pipeline.new.read import ReadItem, Record, Sample

# Before a number that is an estimate.
ABOUT = "\N{ALMOST EQUAL TO} "
# The language of so many texts is guessed.
GUESSED = 500
# With fewer text files, which are short, each paragraph is a document: else none might be held out.
FEW_FILES, SHORT_BYTES = 50, 1 << 16


# What learns from records, in words.
LEARNED = {stage: words.records for stage, words in WORDS.items()} | {"pretrain": "text"}
# The kinds of files whose records a job reads, too.
READ_BY_JOBS = ("text", "jsonl", "parquet")
# The keys that a copy keeps next to the columns that were chosen.
NEXT_TO_TURNS = (*SYSTEMS, *TOOLS, HISTORY)


@dataclass(frozen=True)
class Content:
    """What a record says.

    Attributes:
        where: its `file:line`.
        record: the record as a job reads it.
        texts: its texts; of a preference, each is a side with its prompt.
        question: the beginning of a text, or what the user asks first.
        answer: the right answer to a prompt, or what a conversation ends with.
        unread: filled keys of the record that a job does not read.
    """

    where: str
    record: Record
    texts: list[str]
    question: str = ""
    answer: Any = None
    unread: tuple[str, ...] = ()

    @cached_property
    def bytes(self) -> int:
        """The bytes of its texts."""
        return sum(len(text.encode()) for text in self.texts)


@dataclass
class DataSet:
    """The files of a group, how they are read, and what they say. Counts are of the sample.

    Attributes:
        stage: the stage of a job that learns from it.
        columns: by its name in the data, what a job shall call a column; empty: a job reads the
            records as they are.
        roles: what names of roles in the data mean, in small letters, if a copy replaces them.
        copied: whether a job reads a copy.
        path: what a job reads: the files, or a copy of them.
        contents: what the records with text say.
        problems: why others can't be read.
        blank: how many records have no text.
    """

    sample: Sample
    stage: str
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    copied: bool = False
    path: Path = Path()
    contents: list[Content] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    blank: int = 0

    @property
    def group(self) -> Group:
        """The files."""
        return self.sample.group

    @property
    def all_records(self) -> int:
        """About how many records there are."""
        return round(len(self.contents) * self.sample.factor)

    @property
    def all_text_bytes(self) -> int:
        """About how many bytes of text there are."""
        return round(sum(self.lengths) * self.sample.factor)

    @cached_property
    def lengths(self) -> list[int]:
        """The bytes of text of each record, in order."""
        return sorted(content.bytes for content in self.contents)

    def length(self, share: float) -> int:
        """Return the bytes that this share of the records does not exceed."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]

    @property
    def paragraphs(self) -> int:
        """About how many paragraphs a file has, if paragraphs are the documents; else 0."""
        group = self.group
        few = group.kind == "text" and len(group.files) < FEW_FILES and not self.copied
        if not few or self.lengths[-1] >= SHORT_BYTES:
            return 0
        breaks = sum(content.texts[0].count("\n\n") for content in self.contents)
        return 1 + breaks // len(self.contents)

    @cached_property
    def languages(self) -> Counter[str]:
        """How many texts have which language. Short texts are guessed together."""
        counts, waiting = Counter[str](), ""
        for content in self.contents[:GUESSED]:
            waiting += content.texts[0] + "\n"
            if len(waiting) >= languages.ENOUGH:
                counts[languages.language_of(waiting)] += 1
                waiting = ""
        return counts or Counter([languages.language_of(waiting)])

    def usable(self, record: Record) -> Record:
        """Return the record as a job reads it."""
        if self.stage == "pretrain":
            (column,) = self.columns
            text = record.get(column)
            return {TEXT: "" if is_null(text) and column in record else text}
        if self.columns:
            extra = {key: record[key] for key in NEXT_TO_TURNS if record.get(key)}
            record = extra | {self.columns[k]: v for k, v in record.items() if k in self.columns}
        if not self.roles:
            return record
        return {
            key: [self._with_role(turn) for turn in value] if isinstance(value, list) else value
            for key, value in record.items()
        }

    def _with_role(self, turn: Any) -> Any:
        role = self.roles.get((role_said(turn) or "").strip().lower())
        return turn if role is None else {**turn, **{k: role for k in ROLE_KEYS if k in turn}}

    def columns_in_words(self) -> str:
        """Return what is read of the records, and which filled columns are not."""
        records = islice((i.record for i in self.sample.items if i.record is not None), GUESSED)
        filled = dict.fromkeys(name for one in records for name in Fields(one, "").there(*one))
        of_text = self.stage == "pretrain"
        some = self.contents[:GUESSED]
        read = {name for content in some for name in content.record.keys() - {*content.unread}}
        columns = self.columns or {name: name for name in COLUMNS if name in read}
        names = [
            name if name == columns[name] else f"{name} as {columns[name]}"
            for name in filled
            if name in columns and (name != TEXT or not of_text)
        ]
        used = (*columns, *(() if of_text else NEXT_TO_TURNS))
        unused = [name for name in filled if self.columns and name not in used]
        rest = f". Not used: {', '.join(unused)}" if unused else ""
        return f"{LEARNED[self.stage]}{': ' if names else ''}{', '.join(names)}{rest}"


def content_of(data: DataSet, item: ReadItem, *, own: bool = False) -> Content:
    """Return what a record says; `own` is whether Pion's own chat format is used.

    Raises BadInput if it can't be read, or a run would refuse it.
    """
    if item.record is None:
        raise BadInput(item.problem)
    where, answer = item.where, None
    record = with_texts(data.usable(item.record), whole_characters)
    if data.stage == "pretrain":
        if isinstance(text := record["text"], str):
            return Content(where, record, [text], " ".join(text.split()[:8]))
        (column,) = data.columns
        kind = "nothing" if text is None else type(text).__name__
        raise BadInput(f"{where}: under {column!r} is {kind} instead of text")
    if data.stage == "prefer":
        conversations = parse_preference(record, where).conversations
    elif data.stage == "reinforce":
        prompt = parse_question(record, where)
        conversations, answer = (prompt.conversation,), prompt.answer
    else:
        conversations = (read_conversation(record, where, own=own),)
        answer = conversations[0].messages[-1]["content"]
    questions = (m["content"] or "" for m in conversations[0].messages if m["role"] == "user")
    question = " ".join(next(questions, "").split()[:40])
    texts = ["\n".join(m["content"] or "" for m in one.messages) for one in conversations]
    return Content(where, record, texts, question, answer, conversations[0].seen.unread)


def look_at(data: DataSet, *, own: bool = False) -> None:
    """Note what the sample of a data set says. Nothing that is wrong ends the look; `own` as in
    `content_of`."""
    for item in data.sample.items:
        try:
            content = content_of(data, item, own=own)
        except BadInput as error:
            data.problems.append(str(error))
        else:
            if content.bytes and any(map(str.strip, content.texts)):
                data.contents.append(content)
            else:
                data.blank += 1


def in_words(data: DataSet) -> Iterator[str]:
    """Yield what was seen, a line for each thing."""
    group, sample = data.group, data.sample
    files = f"{IN_WORDS[group.kind]}: {counted(len(group.files), 'file')}, {size(group.bytes)}"
    about = "" if sample.whole else ABOUT
    if sample.whole:
        yield f"{files}, all of it looked at"
    else:
        yield (
            f"{files}. Looked at the first part of {counted(len(sample.files), 'file')}, "
            f"{size(sample.stored)}; numbers below with {ABOUT}are estimates from it"
        )
    if not data.contents:
        return
    yield (
        f"{about}{counted(data.all_records, WORDS[data.stage].record)}, "
        f"{about}{size(data.all_text_bytes)} of text; the middle one has "
        f"{data.length(0.5):,} bytes, one in ten more than "
        f"{data.length(0.9):,}, the longest {data.lengths[-1]:,}"
    )
    yield f"language, roughly: {languages.in_words(data.languages)}"
    copies = len(data.contents) - len({json.dumps(one.texts) for one in data.contents})
    if copies:
        share = copies / len(data.contents)
        yield (
            f"twice: {amount(copies)} of {amount(len(data.contents))} ({share:.1%}) are exact "
            "copies of another one. Copies are learned more often; remove them if that is not meant"
        )
    if data.blank:
        yield f"blank: {data.blank:,}, left out"
    if group.kind != "text":
        yield f"read as {data.columns_in_words()}"
