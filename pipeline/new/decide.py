"""Decide how each group of files is read; ask the person at a terminal, or refuse with the option.

`pion.data.records.layouts` says what the keys of a record mean. Only what no job reads as it is, or
what could mean two things, is decided here: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pion.data.chat.conversation import ALIASES, ROLES
from pion.data.chat.messages import KNOWN_ROLES
from pion.data.prompt.layouts import RIGHT, parse_question
from pion.data.records.fields import Fields, is_null, json_in
from pion.data.records.layouts import (
    ANSWERS,
    CONTEXTS,
    HISTORY,
    QUESTIONS,
    SIDES,
    SYSTEMS,
    TEXT,
    TOOLS,
    TURNS,
    kind_of,
    read_conversation,
)
from pion.data.records.transcripts import marked
from pion.data.records.turns import ROLE_KEYS, TEXT_KEYS, known_role, plain_name, role_said
from pion.errors import BadInput
from pion.later_fields import closest, shown
from pipeline.console.formats import some
from pipeline.new.files import Group
from pipeline.new.options import Wishes
from pipeline.new.read import ReadItem, Record
from pipeline.new.sample import Sample

# The kinds of files whose records a job reads, too.
READ_BY_JOBS = ("text", "jsonl", "parquet")
# What learns from records, in words.
LEARNED = {
    "pretrain": "text",
    "sft": "conversations",
    "prefer": "preferences",
    "reinforce": "prompts",
}
# So many records of so many files show their layout.
LAYOUT_FILES, LAYOUT_RECORDS = 16, 100
# A column of texts has at least so many characters on average, and spaces. Names, labels, numbers
# and addresses have less.
LEAST_CHARACTERS = 16
# The keys that a copy keeps next to the columns that were chosen.
NEXT_TO_TURNS = (*SYSTEMS, *TOOLS, HISTORY)
# What pandas calls columns that have no more than the numbers of rows.
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Reading:
    """How a group of files is read.

    Attributes:
        stage: the stage of a job that learns from it.
        columns: by its name in the data, what a job shall call a column; empty: a job reads the
            records as they are.
        roles: what names of roles in the data mean, in small letters, if a copy replaces them.
        copied: whether a job reads a copy.
    """

    group: Group
    stage: str
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    copied: bool = False

    def usable(self, record: Record) -> Record:
        """Return the record as a job reads it."""
        if self.stage == "pretrain":
            (column,) = self.columns
            text = record.get(column)
            return {TEXT: "" if is_null(text) and column in record else text}
        if self.columns:
            kept = {key: record[key] for key in NEXT_TO_TURNS if record.get(key)}
            new = {self.columns[key]: value for key, value in record.items() if key in self.columns}
            record = kept | new
        if self.roles:
            record = {key: self._with_roles(value) for key, value in record.items()}
        return record

    def _with_roles(self, turns: Any) -> Any:
        if not isinstance(turns, list):
            return turns
        roles = [self.roles.get((role_said(turn) or "").strip().lower()) for turn in turns]
        return [
            turn if role is None else {**turn, **{key: role for key in ROLE_KEYS if key in turn}}
            for turn, role in zip(turns, roles)
        ]

    def unused(self, record: Record) -> list[str]:
        """Return the filled columns of a record that a job does not get."""
        used = (*self.columns, *(() if self.stage == "pretrain" else NEXT_TO_TURNS))
        return Fields(record, "").there(*(n for n in record if self.columns and n not in used))


def decide(samples: Sequence[Sample], wishes: Wishes) -> list[Reading]:
    """Return how each group that is used is read.

    Raises BadInput if text and conversations, or preferences and other data, are mixed and nobody
    said which is meant.
    """
    readings = [_reading(sample, replace(wishes)) for sample in samples]
    first = {reading.stage: reading.group.files[0] for reading in readings}
    of_both = first.keys() == {"pretrain", "sft"}
    if wishes.use in ("text", "chats"):
        chosen = [r for r in readings if (r.stage == "pretrain") == (wishes.use == "text")]
        if not chosen:
            raise BadInput(
                f"--use {wishes.use}: {samples[0].group.path} has no {wishes.use}, only "
                f"{LEARNED[readings[0].stage]}. Leave out --use, or name the column: --text-column "
                "NAME, or --question-column NAME --answer-column NAME"
            )
        return chosen
    if len(first) > 1 and not (of_both and wishes.use):
        use = (
            "Text is for pretraining, conversations are for fine-tuning. Say what to use: --use "
            "text, --use chats, or --use both (pretrain on the text, then fine-tune)"
        )
        raise _mixed(first, use if of_both else _APART)
    return readings


_APART = (
    "A source of a job has one of them. Give one of the files, or move them into folders of their "
    "own"
)


def _mixed(first: Mapping[str, Path], how: str) -> BadInput:
    one, other = sorted(first, key=list(LEARNED).index)[:2]
    return BadInput(
        f"{LEARNED[one]} and {LEARNED[other]} are mixed: {first[one]} has {LEARNED[one]}, and "
        f"{first[other]} has {LEARNED[other]}. {how}. Nothing was written."
    )


def _reading(sample: Sample, wishes: Wishes) -> Reading:
    group, first, every = sample.group, dict[str, Path](), list[ReadItem]()
    for file, items in islice(sample.files.items(), LAYOUT_FILES):
        readable = [item for item in items if item.record is not None][:LAYOUT_RECORDS]
        every += readable
        if readable and not wishes.columns:
            with suppress(BadInput):
                first.setdefault(_layout(readable, replace(wishes, asks=False), file)[0], file)
    if group.kind == "text" or not every:  # nothing can be read: the look says why
        return Reading(group, "pretrain", {TEXT: TEXT})
    if len(first) > 1:
        raise _mixed(first, _APART)
    stage, columns = _layout(every, wishes, group.files[0])
    roles = _roles(every, columns, wishes) if stage == "sft" else {}
    columns = columns or {key: key for key in TURNS if roles}
    renamed = bool(columns) and stage != "pretrain"
    return Reading(group, stage, columns, roles, renamed or group.kind not in READ_BY_JOBS)


def _layout(items: Sequence[ReadItem], wishes: Wishes, file: Path) -> tuple[str, Mapping[str, str]]:
    """Return the stage that learns from records, and the new names of their columns.

    Raises BadInput as `Wishes.ask` does, if no column has texts, and for a column that was asked
    for and is not there.
    """
    records = [item.record for item in items if item.record is not None]
    names = dict.fromkeys(name for record in records for name in record)
    columns = [name for name in names if not _INDEX.fullmatch(name)]
    listed = f"Its columns: {', '.join(columns) or 'none'}"
    for option, name in wishes.columns.items():
        if name not in columns:
            near = closest(name, columns)
            raise BadInput(f"{option} {name}: {file} has no such column{near}. {listed}")
    if wishes.text_column is not None:
        return "pretrain", {wishes.text_column: TEXT}
    if not wishes.columns and wishes.use not in ("text", "chats"):
        if any(kind_of(record) in ("pair", "label") for record in records):
            return "prefer", {}
        stages = {_converses(record) for record in records}
        if "reinforce" in stages and "sft" not in stages:
            return "reinforce", {}
    renamed = _chats(records, columns, wishes, file)
    if renamed is not None:
        return "sft", renamed
    if wishes.columns:
        raise BadInput(
            f"{file}: no column has turns with a role and a text, and no two columns have the "
            f"names of a question and an answer. {listed}. Name them: --question-column NAME "
            "--answer-column NAME"
        )
    return "pretrain", {_text_column(records, columns, wishes, file): TEXT}


def _converses(record: Record) -> str | None:
    """Return which stage learns from a record with a question: a conversation, or a prompt with a
    right answer that nobody learns by heart."""
    if kind_of(record) is not None and record.keys().isdisjoint(TURNS):
        return "sft"  # nobody guesses which of its answers is learned
    with suppress(BadInput):
        read_conversation(record, "")
        return "sft"
    with suppress(BadInput):
        return "reinforce" if parse_question(record, "").answer is not None else None
    return None


# ---------------------------------------------------------------- conversations


def _chats(
    records: Sequence[Record], columns: Sequence[str], wishes: Wishes, file: Path
) -> dict[str, str] | None:
    """Return the new names of the columns of conversations; None if there are none."""
    # A prompt and an answer may be lists of turns, too.
    sides = (*QUESTIONS, *ANSWERS, *(key for keys in SIDES for key in keys))
    names = [name for name in columns if name not in sides or name == wishes.turns_column]
    turns = [name for name in names if any(_has_turns(record, name) for record in records)]
    if wishes.turns_column is not None:
        return {wishes.turns_column: TURNS[0]} if wishes.turns_column in turns else None
    asked_for = wishes.question_column or wishes.answer_column
    if turns and not asked_for:
        if any(sum(bool(record.get(name)) for name in turns) > 1 for record in records):
            words = f"the columns {_and(turns)} all have turns. Which has the conversations?"
            column = wishes.ask(f"{file}: {words}", turns, "--turns-column")
            return {column: TURNS[0]}
        return {name: TURNS[0] for name in turns if name not in TURNS}
    pair = _pair(columns, wishes, file)
    texts = (name for name in columns if any(marked(record.get(name)) for record in records))
    if pair is None and wishes.use != "text" and (name := next(texts, None)) is not None:
        return {} if name == TEXT else {name: TURNS[0]}
    if pair is None:
        return None
    asked = "chats" if asked_for or TEXT not in columns else wishes.use
    if asked not in ("text", "chats") and not _copies(records, pair):
        words = (
            f"the columns {pair['prompt']} and {pair['completion']} could be conversations, and "
            f"the column {TEXT} could be documents. Which are used?"
        )
        asked = wishes.ask(f"{file}: {words}", ("chats", "text"), "--use")
    if asked == "text":
        return None
    ours = (*QUESTIONS, *ANSWERS, *CONTEXTS, *SYSTEMS)
    named = wishes.question_column or wishes.answer_column
    if not named and all(column in ours for column in pair.values()):
        return {}  # a job reads them as they are
    return {column: new for new, column in pair.items()}


def _has_turns(record: Record, column: str) -> bool:
    """Return whether a column has a list of turns, also as JSON in a text."""
    turns = record.get(column)
    with suppress(BadInput):
        turns = json_in(turns, "") if column in TURNS else turns
    if not isinstance(turns, list):
        return False
    keys = {key for turn in turns[:4] if isinstance(turn, dict) for key in turn}
    of_turns = not keys.isdisjoint(ROLE_KEYS) and not keys.isdisjoint(TEXT_KEYS)
    return column in TURNS or of_turns  # a job says what is wrong with its own


def _pair(columns: Sequence[str], wishes: Wishes, file: Path) -> dict[str, str] | None:
    """Return the columns of a question and its answer, by what a job calls them; None if there are
    no such columns."""
    contexts, pair = _of_names(columns, CONTEXTS), dict[str, str]()
    questions = _of_names(columns, QUESTIONS)
    # Alpaca's input belongs to its instruction.
    questions = [n for n in questions if n not in contexts] if len(questions) > 1 else questions
    answers = _of_names(columns, ANSWERS)
    sides = (
        ("question", "question_column", "prompt", questions),
        ("answer", "answer_column", "completion", answers),
    )
    for what, name, new, there in sides:
        wish = getattr(wishes, name)
        if not wish and len(there) > 1:
            words = f"{file}: the columns {_and(there)} could all be the {what}. Which is it?"
            wish = wishes.ask(words, there, f"--{what}-column")
            setattr(wishes, name, wish)
        if not wish and not there:
            return None
        pair[new] = wish or there[0]
    others = {"context": contexts, "system": _of_names(columns, SYSTEMS)}
    free = {new: [n for n in there if n not in pair.values()] for new, there in others.items()}
    return pair | {new: there[0] for new, there in free.items() if there}


def _of_names(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [column for column in columns if column.strip().lower() in names]


def _copies(records: Sequence[Record], pair: Mapping[str, str]) -> bool:
    """Return whether the column `text` repeats question and answer, as Alpaca's does."""
    return all(
        str(record.get(name) or "").strip() in str(record.get(TEXT) or "")
        for record in records
        for name in (pair["prompt"], pair["completion"])
    )


def _roles(items: Sequence[ReadItem], columns: Mapping[str, str], wishes: Wishes) -> dict[str, str]:
    """Return the meanings of names that Pion does not know, or that the person changed.

    Raises BadInput for names that nobody knows, without a terminal.
    """
    places: dict[str, str] = {}
    for item in items:
        values = [(item.record or {}).get(column) for column in (*TURNS, *columns)]
        for turn in (t for turns in values if isinstance(turns, list) for t in turns):
            places.setdefault((role_said(turn) or "").strip(), item.where)
    known = {said: known_role(plain_name(said) or "") for said in places if said}
    unknown = [said for said in known if not known[said] and said.lower() not in wishes.roles]
    if unknown and not wishes.can_ask:
        near = closest(unknown[0].lower(), (*KNOWN_ROLES, *ROLES, *ALIASES)) or "."
        example = ",".join(f"{one}={role}" for one, role in zip(unknown, ("user", "assistant")))
        raise BadInput(
            f"{places[unknown[0]]}: unknown role {shown(unknown[0])}{near} Unknown in all: "
            f"{some([*map(shown, unknown)], 4)}. Say what each of them means, for example: "
            f"--roles '{example}'. The roles are {', '.join(KNOWN_ROLES)}"
        )
    for said in unknown:
        words = f"{places[said]}: what does the role {shown(said)} mean?"
        wishes.roles[said.lower()] = wishes.ask(words, KNOWN_ROLES[:3], "--roles")
    meant = {said: wishes.roles.get(said.lower(), known[said]) for said in known}
    return {said.lower(): role for said, role in meant.items() if role and role != known[said]}


# ---------------------------------------------------------------- texts


def _text_column(
    records: Sequence[Record], columns: Sequence[str], wishes: Wishes, file: Path
) -> str:
    """Return the column with the text. Raises BadInput as `_layout` does."""
    texts = {n: [r[n] for r in records if isinstance(r.get(n), str)] for n in columns}
    strings = [name for name in columns if texts[name]]
    if not strings:
        filled = {n: [r[n] for r in records if r.get(n) is not None] for n in columns[:8]}
        kinds = ", ".join(f"{n} ({type([*v, None][0]).__name__})" for n, v in filled.items())
        raise BadInput(f"{file}: no column has text. Its columns: {kinds or 'none'}")
    prose = [name for name in strings if _is_prose(texts[name])]
    usual = [TEXT] if TEXT in strings else strings if len(columns) == 1 else prose
    first_one, *others = usual or strings
    odd = {
        f"the columns {_and(usual or strings)} could all be the text. Which is it?": bool(others),
        "each record is one message of a conversation. Is each one a separate text?": (
            first_one == TEXT and "role" in columns
        ),
        f"the column {shown(first_one)} has one half of a conversation. Is it the text?": (
            first_one in (*QUESTIONS, *ANSWERS, *RIGHT)
        ),
        f"only the column {shown(first_one)} has text, and few words. Is it the text?": not usual,
    }
    why = next((words for words, holds in odd.items() if holds), None)
    if why is None:
        return first_one
    return wishes.ask(f"{file}: {why}", usual or strings, "--text-column")


def _is_prose(texts: Sequence[str]) -> bool:
    said = [text for text in texts if text.strip()]
    spaced = sum(" " in text.strip() for text in said)
    return sum(map(len, said)) >= LEAST_CHARACTERS * max(1, len(said)) and 2 * spaced >= len(said)


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(map(shown, names[:-1]))} and {shown(names[-1])}"
