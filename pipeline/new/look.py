"""Look at a sample of data: how much, how long, which languages, copies, what can't be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pion.data.chat.messages import Seen
from pion.data.documents import languages
from pion.data.documents.file_to_documents import whole_characters
from pion.data.records.layouts import read_conversation
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.errors import BadInput
from pipeline.console.formats import amount, counted, size
from pipeline.data.remarks import Remarks
from pipeline.new import sample as bounds
from pipeline.new.chats import as_conversation
from pipeline.new.files import IN_WORDS, Group
from pipeline.new.layouts import Layout, Record, TextColumn, is_chat, unused
from pipeline.new.read import Item
from pipeline.new.sample import Sample, sample_of

# So many problems are named.
NAMED = 5
# So many records are kept to be shown, and the language of so many is guessed.
SHOWN, GUESSED = 3, 500
# Of so many bytes of text, every record is kept.
FEW_BYTES = 1_000_000
# Templates say how tools are called in so many bytes, about.
TOOLS_BYTES = 600
# Characters of a vocabulary's training that are kept, to show conversations by it.
KEPT_CHARACTERS = 300_000
# Before a number that is an estimate.
ABOUT = "\N{ALMOST EQUAL TO} "


@dataclass(frozen=True)
class Reading:
    """How a group of files is read."""

    group: Group
    layout: Layout
    direct: bool  # a job reads the files as they are
    roles: dict[str, str] = field(default_factory=dict)
    own_template: bool = False

    def usable(self, record: Record) -> Record:
        """Return the record as a job reads it: `messages`, `conversations` or a text under its
        column."""
        if not is_chat(self.layout):
            assert isinstance(self.layout, TextColumn)
            column = self.layout.column
            text = record.get(column)
            return {"text": "" if text is None and column in record else text}
        return record if self.direct else as_conversation(record, self.layout, self.roles)

    def text_of(self, record: Record, where: str) -> tuple[list[str], int, Seen]:
        """Return the texts of a record that is `usable`, the bytes of tools and calls next to
        them, and what else it has.

        Raises BadInput for a record that a run would refuse.
        """
        if is_chat(self.layout):
            talk = read_conversation(record, where, own=self.own_template)
            texts = [message["content"] or "" for message in talk.messages]
            calls = [message.get("tool_calls") for message in talk.messages]
            beside = [json.dumps(part) for part in (talk.tools, *calls) if part]
            about = TOOLS_BYTES if talk.tools else 0
            return texts, about + sum(map(len, beside)), talk.seen
        if isinstance(record["text"], str):
            return [record["text"]], 0, Seen()
        assert isinstance(self.layout, TextColumn)
        found = "nothing" if record["text"] is None else type(record["text"]).__name__
        raise BadInput(f"{where}: under {self.layout.column!r} is {found} instead of text")


@dataclass
class Look:
    """What was seen of a group of files. Counts are of the sample."""

    reading: Reading
    sample: Sample
    records: int = 0
    blank: int = 0
    text_bytes: int = 0
    characters: int = 0
    lengths: list[int] = field(default_factory=list)  # bytes of text in each record
    seen: set[int] = field(default_factory=set)
    twice: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    few: list[tuple[str, Record]] = field(default_factory=list)  # the first
    kept: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=lambda: Remarks(ReplacedCharacters(None)))

    @property
    def is_chat(self) -> bool:
        return is_chat(self.reading.layout)

    @property
    def shown(self) -> list[tuple[str, Record]]:
        """The records to show, with their `file:line`."""
        return self.few[:SHOWN]

    @property
    def all_records(self) -> int:
        """About how many records there are."""
        return round(self.records * self.sample.factor)

    @property
    def all_text_bytes(self) -> int:
        """About how many bytes of text there are."""
        return round(self.text_bytes * self.sample.factor)

    def length(self, share: float) -> int:
        """Return the length in bytes that this share of the records does not exceed."""
        return not_exceeded(self.lengths, share)


def not_exceeded(lengths: Sequence[int], share: float) -> int:
    """Return the length that this share of the lengths does not exceed; 0 if there are none."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def look_at(reading: Reading, limit: int | None = None) -> Look:
    """Return what a sample of about `limit` bytes shows; None: LOOK_BYTES."""
    sample = sample_of(reading.group, limit or bounds.LOOK_BYTES)
    look = Look(reading, sample)
    for item in sample.items:
        _note(look, item)
    return look


def _note(look: Look, item: Item) -> None:
    problem = item.problem
    texts, beside = [""], 0
    if item.record is not None:
        record = look.reading.usable(item.record)
        try:
            texts, beside, seen = look.reading.text_of(record, item.where)
            if not look.is_chat or not look.reading.direct:
                seen = replace(seen, unread=unused(look.reading.layout, item.record))
            look.remarks.note(seen, texts, item.where)
        except BadInput as error:
            problem = str(error)
    if problem is not None or item.record is None:
        look.bad += 1
        if len(look.problems) < NAMED:
            look.problems.append(problem or item.where)
        return
    text = "\n".join(texts)
    if not text.strip():
        look.blank += 1
        return
    length = len(whole_characters(text).encode()) + beside
    look.records += 1
    look.text_bytes += length
    look.characters += len(text)
    look.lengths.append(length)
    mark = hash(text)
    look.twice += mark in look.seen
    look.seen.add(mark)
    if sum(look.languages.values()) < GUESSED:
        look.languages[languages.language_of(text)] += 1
    if look.text_bytes <= FEW_BYTES or len(look.few) < SHOWN:
        look.few.append((item.where, record))
    if look.characters <= KEPT_CHARACTERS or not look.kept:
        look.kept += [part[:KEPT_CHARACTERS] for part in texts]


def looked_at(group: Group, sample: Sample) -> str:
    """Return how much there is, and which part of it was looked at, in words."""
    files = f"{IN_WORDS[group.kind]}: {counted(len(group.files), 'file')}, {size(group.bytes)}"
    if sample.whole:
        return f"{files}, all of it looked at"
    return (
        f"{files}. Looked at the first part of {counted(sample.files, 'file')}, "
        f"{size(sample.stored)}; numbers below with {ABOUT}are estimates from it"
    )


def in_words(look: Look) -> Iterator[str]:
    """Yield what was seen, a line for each thing."""
    what = "conversation" if look.is_chat else "document"
    yield looked_at(look.reading.group, look.sample)
    about = "" if look.sample.whole else ABOUT
    if not look.records:
        return
    yield (
        f"{about}{counted(look.all_records, what)}, {about}{size(look.all_text_bytes)} of text; "
        f"the middle one has {look.length(0.5):,} bytes, one in ten more than "
        f"{look.length(0.9):,}, the longest {max(look.lengths, default=0):,}"
    )
    if look.languages:
        yield f"language, roughly: {languages.in_words(look.languages)}"
    if look.twice:
        share = look.twice / max(1, look.records)
        yield (
            f"twice: {amount(look.twice)} of {amount(look.records)} ({share:.1%}) are exact copies "
            "of another one. Copies are learned more often; remove them if that is not meant"
        )
    if look.blank:
        yield f"blank: {look.blank:,}, left out"
