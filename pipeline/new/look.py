"""Look at a sample of data: how much, how long, which languages, copies, what can't be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pion.data.chat.messages import Conversation, Seen, with_texts
from pion.data.documents import languages
from pion.data.documents.file_to_documents import whole_characters
from pion.data.preference.layouts import Pair, Preference, parse_preference
from pion.data.preference.rendering import reason_without_ids
from pion.data.prompt.layouts import parse_question
from pion.data.records.fields import is_null
from pion.data.records.layouts import read_conversation
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.errors import BadInput
from pipeline.data.remarks import Remarks
from pipeline.new import sample as bounds
from pipeline.new.chats import as_conversation
from pipeline.new.files import Group
from pipeline.new.layouts import Layout, Preferences, Prompts, Record, TextColumn, unused
from pipeline.new.read import ReadItem
from pipeline.new.sample import Sample

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

# What learns from the layouts; all others are conversations.
STAGES = {Preferences: "prefer", Prompts: "reinforce", TextColumn: "pretrain"}
# With fewer text files, which are short, each paragraph is a document: else none might be held out.
FEW_FILES, SHORT_BYTES = 50, 1 << 16


@dataclass(frozen=True)
class Content:
    """What a record says.

    Attributes:
        where: its `file:line`.
        record: the record as a job reads it: with `messages`, `conversations`, a preference, or a
            text under `text`.
        texts: its texts; of a preference, each is a side with its prompt.
        other_bytes: those of tools, calls and line breaks next to the texts.
        seen: what else it has.
        conversation: the conversation, or the prompt; None: the record is a text or a preference.
        preference: the preference; None: it is another record.
        answer: the right answer to the prompt, or what a conversation ends with; None: it is
            another record.
    """

    where: str
    record: dict[str, Any]
    texts: list[str]
    other_bytes: int
    seen: Seen
    conversation: Conversation | None = None
    preference: Preference | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a group of files is read."""

    group: Group
    layout: Layout
    direct: bool  # a job reads the files as they are
    roles: dict[str, str] = field(default_factory=dict)
    own_template: bool = False

    def usable(self, record: Record) -> dict[str, Any]:
        """Return the record as a job reads it."""
        if isinstance(self.layout, TextColumn):
            column = self.layout.column
            text = record.get(column)
            return {"text": "" if is_null(text) and column in record else text}
        if self.direct or isinstance(self.layout, Preferences | Prompts):
            return dict(record)
        return as_conversation(record, self.layout, self.roles)

    def content(self, item: ReadItem) -> Content:
        """Return what a record says. Raises BadInput if it can't be read, or a run would refuse
        it."""
        if item.record is None:
            raise BadInput(item.problem)
        where, record = item.where, with_texts(self.usable(item.record), whole_characters)
        if isinstance(self.layout, TextColumn):
            text = record["text"]
            if isinstance(text, str):
                return Content(
                    where, record, [text], 0, Seen(unread=unused(self.layout, item.record))
                )
            kind = "nothing" if text is None else type(text).__name__
            raise BadInput(f"{where}: under {self.layout.column!r} is {kind} instead of text")
        if isinstance(self.layout, Preferences):
            found = parse_preference(record, where)
            texts = ["\n".join(_texts(side.messages)) for side in found.conversations]
            return Content(where, record, texts, 0, found.conversations[0].seen, preference=found)
        if isinstance(self.layout, Prompts):
            asked = parse_question(record, where)
            texts, seen = _texts(asked.conversation.messages), asked.conversation.seen
            return Content(where, record, texts, 0, seen, asked.conversation, answer=asked.answer)
        talk = read_conversation(record, where, own=self.own_template)
        texts = _texts(talk.messages)
        others = [talk.tools, *(message.get("tool_calls") for message in talk.messages)]
        about = TOOLS_BYTES if talk.tools else 0
        other_bytes = len(texts) - 1 + about + sum(len(json.dumps(one)) for one in others if one)
        seen = talk.seen
        if not self.direct:
            seen = replace(seen, unread=unused(self.layout, item.record))
        return Content(where, record, texts, other_bytes, seen, talk, answer=texts[-1])


def _texts(messages: Sequence[Any]) -> list[str]:
    return [message["content"] or "" for message in messages]


@dataclass
class Look:
    """What was seen of a group of files. Counts are of the sample.

    Attributes:
        path: what a job reads: the files, or a copy of them.
        lengths: bytes of text in each record; of a preference, both sides with their prompts.
        twice: records that are copies of another one; `seen` are the marks of all.
        few: what the first records say.
        tokens: of each of them, once the template of a model to start from was tried.
        kept: texts on which a tokenizer is tried.
        first: the first preference.
        longer: pairs whose chosen answer is the longer one.
        swapped: pairs whose chosen answer has the lower score.
        left_out: preferences that a run leaves out, by the reason.
    """

    reading: Reading
    sample: Sample
    path: Path
    text_bytes: int = 0
    characters: int = 0
    lengths: list[int] = field(default_factory=list)
    blank: int = 0
    seen: set[int] = field(default_factory=set)
    twice: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    unguessed: str = ""
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    few: list[Content] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=lambda: Remarks(ReplacedCharacters(None)))
    first: Preference | None = None
    longer: int = 0
    swapped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def stage(self) -> str:
        """The stage of a job that learns from it."""
        return STAGES.get(type(self.reading.layout), "sft")

    def guess_language(self) -> None:
        """Count the language of the texts that wait for it: a short one alone says too little."""
        self.languages[languages.language_of(self.unguessed)] += 1
        self.unguessed = ""

    @property
    def what(self) -> str:
        """What one of its records is called."""
        if self.stage == "prefer":
            return "pair" if self.paired else "answer"
        return {"sft": "conversation", "reinforce": "prompt"}.get(self.stage, "document")

    @property
    def paired(self) -> bool:
        """Whether preferences are pairs, and not single answers with labels."""
        return self.stage == "prefer" and (self.first is None or isinstance(self.first, Pair))

    @property
    def records(self) -> int:
        """How many records have text."""
        return len(self.lengths)

    @property
    def shown(self) -> list[Content]:
        """The records to show."""
        return self.few[:SHOWN]

    @property
    def all_kept(self) -> bool:
        """Whether all was looked at and is among the `few`."""
        return self.sample.whole and len(self.few) == self.records

    @property
    def all_records(self) -> int:
        """About how many records there are."""
        return round(self.records * self.sample.factor)

    @property
    def all_text_bytes(self) -> int:
        """About how many bytes of text there are."""
        return round(self.text_bytes * self.sample.factor)

    @property
    def paragraphs(self) -> int:
        """About how many paragraphs a file has, if paragraphs are the documents; else 0."""
        group = self.reading.group
        few = group.kind == "text" and len(group.files) < FEW_FILES and not self.bad
        if not few or max(self.lengths, default=0) >= SHORT_BYTES:
            return 0
        paragraphs = sum(text.count("\n\n") + 1 for one in self.shown for text in one.texts)
        return max(1, paragraphs // max(1, len(self.shown)))

    def length(self, share: float) -> int:
        """Return the bytes that this share of the records does not exceed; 0 if there are none."""
        ordered = sorted(self.lengths)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def look_at(reading: Reading, limit: int | None = None) -> Look:
    """Return what a sample of about `limit` bytes shows; None: LOOK_BYTES.

    Nothing that is wrong ends the look. If anything can't be read, a job needs a copy without it.
    """
    group = reading.group
    look = Look(reading, Sample(group, limit or bounds.LOOK_BYTES), group.path)
    for item in look.sample:
        try:
            _note(look, reading.content(item))
        except BadInput as error:
            look.bad += 1
            look.problems = [*look.problems, str(error)][:NAMED]
    if look.unguessed and not look.languages:
        look.guess_language()
    look.reading = replace(reading, direct=reading.direct and not look.bad)
    return look


def _note(look: Look, found: Content) -> None:
    """Note what a record says. Raises BadInput if a run would refuse it."""
    preference, texts = found.preference, found.texts
    if look.first is not None and isinstance(preference, Pair) is not look.paired:
        raise BadInput(
            f"{found.where}: pairs and single answers are mixed. A job learns from one of the two: "
            "use two files"
        )
    look.remarks.note(found.seen, texts, found.where)
    if preference is not None:
        look.first = look.first or preference
        if reason := reason_without_ids(preference):
            look.left_out[reason] += 1
            return
        answers = [len(answer_of(side)) for side in preference.conversations]
        look.longer += answers[0] > answers[-1]
        look.swapped += isinstance(preference, Pair) and preference.swapped
        texts = texts[:1]
    text = "\n".join(texts)
    if not text.strip():
        look.blank += 1
        return
    length = found.other_bytes + sum(len(text.encode()) for text in found.texts)
    look.text_bytes += length
    look.lengths.append(length)
    look.characters += len(text)
    mark = hash(text)
    look.twice += mark in look.seen
    look.seen.add(mark)
    if look.languages.total() < GUESSED:
        look.unguessed += f"{text}\n"
        if len(look.unguessed) >= languages.ENOUGH:
            look.guess_language()
    if look.text_bytes <= FEW_BYTES or len(look.few) < SHOWN:
        look.few.append(found)
    if look.characters <= KEPT_CHARACTERS or not look.kept:
        look.kept += [part[:KEPT_CHARACTERS] for part in texts]


def answer_of(side: Conversation) -> str:
    """Return what is learned of a side of a preference."""
    return "\n".join(_texts(side.messages[side.context :]))
