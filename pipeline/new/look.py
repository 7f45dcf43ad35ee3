"""Look at a sample of data: how much, how long, which languages, copies, what can't be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
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
from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.console.formats import amount, counted, size
from pipeline.new.decide import Reading
from pipeline.new.files import IN_WORDS
from pipeline.new.read import ReadItem, Record, Sample

# Before a number that is an estimate.
ABOUT = "\N{ALMOST EQUAL TO} "
# The language of so many texts is guessed.
GUESSED = 500
# What one record is called.
ONE = {"pretrain": "document", "sft": "conversation", "prefer": "preference", "reinforce": "prompt"}
# With fewer text files, which are short, each paragraph is a document: else none might be held out.
FEW_FILES, SHORT_BYTES = 50, 1 << 16


@dataclass(frozen=True)
class Content:
    """What a record says.

    Attributes:
        where: its `file:line`.
        record: the record as a job reads it.
        texts: its texts; of a preference, each is a side with its prompt.
        question: the beginning of a text, or what the user asks first.
        answer: the right answer to a prompt, or what a conversation ends with.
    """

    where: str
    record: Record
    texts: list[str]
    question: str = ""
    answer: Any = None

    @cached_property
    def bytes(self) -> int:
        """The bytes of its texts."""
        return sum(len(text.encode()) for text in self.texts)


def content_of(reading: Reading, item: ReadItem, *, own: bool = False) -> Content:
    """Return what a record says; `own` is whether Pion's own chat format is used.

    Raises BadInput if it can't be read, or a run would refuse it.
    """
    if item.record is None:
        raise BadInput(item.problem)
    where, answer = item.where, None
    record = with_texts(reading.usable(item.record), whole_characters)
    if reading.stage == "pretrain":
        if isinstance(text := record["text"], str):
            return Content(where, record, [text], " ".join(text.split()[:8]))
        (column,) = reading.columns
        kind = "nothing" if text is None else type(text).__name__
        raise BadInput(f"{where}: under {column!r} is {kind} instead of text")
    if reading.stage == "prefer":
        conversations = parse_preference(record, where).conversations
    elif reading.stage == "reinforce":
        prompt = parse_question(record, where)
        conversations, answer = (prompt.conversation,), prompt.answer
    else:
        conversations = (read_conversation(record, where, own=own),)
        answer = conversations[0].messages[-1]["content"]
    questions = (m["content"] or "" for m in conversations[0].messages if m["role"] == "user")
    question = " ".join(next(questions, "").split()[:40])
    texts = ["\n".join(m["content"] or "" for m in one.messages) for one in conversations]
    return Content(where, record, texts, question, answer)


@dataclass
class Look:
    """What was seen of a group of files. Counts are of the sample.

    Attributes:
        path: what a job reads: the files, or a copy of them.
        contents: what the records with text say.
        problems: why others can't be read.
        blank: how many records have no text.
    """

    reading: Reading
    sample: Sample
    path: Path
    contents: list[Content] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    blank: int = 0

    @property
    def stage(self) -> str:
        """The stage of a job that learns from it."""
        return self.reading.stage

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
        group = self.reading.group
        few = group.kind == "text" and len(group.files) < FEW_FILES and not self.reading.copied
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


def look_at(reading: Reading, sample: Sample, *, own: bool = False) -> Look:
    """Return what a sample shows. Nothing that is wrong ends the look."""
    look = Look(reading, sample, sample.group.path)
    for item in sample.items:
        try:
            content = content_of(reading, item, own=own)
        except BadInput as error:
            look.problems.append(str(error))
        else:
            if content.bytes and any(map(str.strip, content.texts)):
                look.contents.append(content)
            else:
                look.blank += 1
    return look


def in_words(look: Look) -> Iterator[str]:
    """Yield what was seen, a line for each thing."""
    group, sample = look.reading.group, look.sample
    files = f"{IN_WORDS[group.kind]}: {counted(len(group.files), 'file')}, {size(group.bytes)}"
    about = "" if sample.whole else ABOUT
    if sample.whole:
        yield f"{files}, all of it looked at"
    else:
        yield (
            f"{files}. Looked at the first part of {counted(len(sample.files), 'file')}, "
            f"{size(sample.stored)}; numbers below with {ABOUT}are estimates from it"
        )
    if not look.contents:
        return
    yield (
        f"{about}{counted(look.all_records, ONE[look.stage])}, {about}{size(look.all_text_bytes)} "
        f"of text; the middle one has {look.length(0.5):,} bytes, one in ten more than "
        f"{look.length(0.9):,}, the longest {look.lengths[-1]:,}"
    )
    yield f"language, roughly: {languages.in_words(look.languages)}"
    copies = len(look.contents) - len({json.dumps(one.texts) for one in look.contents})
    if copies:
        share = copies / len(look.contents)
        yield (
            f"twice: {amount(copies)} of {amount(len(look.contents))} ({share:.1%}) are exact "
            "copies of another one. Copies are learned more often; remove them if that is not meant"
        )
    if look.blank:
        yield f"blank: {look.blank:,}, left out"
    if group.kind != "text":
        records = (item.record for item in sample.items if item.record is not None)
        yield f"read as {look.reading.in_words(islice(records, GUESSED))}"
