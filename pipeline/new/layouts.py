"""What a record means: a text, a list of turns, or a question and an answer in columns.

A record that could mean two things is never guessed at: `Undecided` says what is to be decided, and
which option decides it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.data.records.fields import Fields, json_in
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
)
from pion.data.records.transcripts import marked
from pion.data.records.turns import ROLE_KEYS, TEXT_KEYS
from pion.errors import BadInput
from pion.later_fields import closest, shown

Record = Mapping[str, Any]

# A column of texts has at least so many characters on average, and spaces. Names, labels, numbers
# and addresses have less.
LEAST_CHARACTERS = 16
# The keys that a copy of conversations keeps next to the turns.
NEXT_TO_TURNS = (*SYSTEMS, *TOOLS, HISTORY)
# What pandas calls columns that have no more than the numbers of rows.
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")
# The column that a job reads if it names none.
USUAL = "text"


@dataclass(frozen=True)
class TextColumn:
    """A document in each record."""

    column: str


@dataclass(frozen=True)
class TurnsColumn:
    """A conversation in each record: a list of turns with a role and a text each."""

    column: str
    role_key: str
    text_key: str


@dataclass(frozen=True)
class PairColumns:
    """A question and its answer in each record."""

    question: str
    answer: str
    context: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Preferences:
    """Two answers to a prompt in each record, or one answer with a label."""


@dataclass(frozen=True)
class Prompts:
    """A prompt and its right answer in each record, and nothing that could be learned by heart."""


Columns = TextColumn | TurnsColumn | PairColumns
Layout = Columns | Preferences | Prompts


@dataclass(frozen=True)
class Undecided:
    """A question that a person must answer, the possible answers, and the wish that decides."""

    question: str
    answers: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Wishes:
    """What the person said about the data, by the names of the options. None: nothing.

    `use` is "text", "chats" or "both", where data could be either.
    """

    use: str | None = None
    text_column: str | None = None
    turns_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the person named, by the option."""
        names = ("text_column", "turns_column", "question_column", "answer_column")
        return {
            option_of(name): column for name in names if (column := getattr(self, name)) is not None
        }


def option_of(name: str) -> str:
    """Return the option that sets a field of `Wishes`."""
    return f"--{name.replace('_', '-')}"


def is_chat(layout: Layout) -> bool:
    """Return whether records of this layout are conversations."""
    return isinstance(layout, TurnsColumn | PairColumns)


def layout_of(records: Sequence[Record], wishes: Wishes, where: str) -> Columns | Undecided:
    """Return what these records mean.

    `where` names their file. Raises BadInput if no column has texts, and for a column that was
    asked for and is not there.
    """
    names = dict.fromkeys(name for record in records for name in record)
    columns = [name for name in names if not _INDEX.fullmatch(name)]
    for option, name in wishes.columns.items():
        if name not in columns:
            near = closest(name, columns)
            raise BadInput(
                f"{option} {name}: {where} has no such column{near}. Its columns: "
                f"{', '.join(columns) or 'none'}"
            )
    if wishes.text_column is not None:
        return TextColumn(wishes.text_column)
    found = _chats(records, columns, wishes)
    if found is not None:
        return found
    if wishes.columns:
        raise BadInput(
            f"{where}: no column has turns with a role and a text, and no two columns have the "
            f"names of a question and an answer. Its columns: {', '.join(columns)}. Name them: "
            "--question-column NAME --answer-column NAME"
        )
    return _texts(records, columns, where)


# ---------------------------------------------------------------- conversations


def _chats(
    records: Sequence[Record], columns: Sequence[str], wishes: Wishes
) -> Columns | Undecided | None:
    # A prompt and an answer may be lists of turns, too.
    sides = (*QUESTIONS, *ANSWERS, *(key for keys in SIDES for key in keys))
    names = [name for name in columns if name not in sides or name == wishes.turns_column]
    turns = [layout for name in names if (layout := _turns(records, name)) is not None]
    if wishes.turns_column is not None:
        return next((t for t in turns if t.column == wishes.turns_column), None)
    if not wishes.question_column and not wishes.answer_column:
        found = tuple(layout.column for layout in turns)
        if any(sum(bool(record.get(name)) for name in found) > 1 for record in records):
            words = f"the columns {_and(found)} all have turns. Which has the conversations?"
            return Undecided(words, found, "turns_column")
        if turns:
            return turns[0]
    pair = _pair(columns, wishes)
    texts = (name for name in columns if any(marked(record.get(name)) for record in records))
    if pair is None and wishes.use != "text" and (name := next(texts, None)) is not None:
        return TurnsColumn(name, ROLE_KEYS[0], TEXT_KEYS[0])
    if not isinstance(pair, PairColumns) or wishes.question_column or USUAL not in columns:
        return pair
    if wishes.use == "text":
        return None
    if wishes.use != "chats" and not _copies(records, pair, USUAL):
        words = (
            f"the columns {pair.question} and {pair.answer} could be conversations, and the column "
            f"{USUAL} could be documents. Which are used?"
        )
        return Undecided(words, ("chats", "text"), "use")
    return pair


def _turns(records: Sequence[Record], column: str) -> TurnsColumn | None:
    """Return how the turns in a column are written; None if it has none."""
    lists = [found for record in records if isinstance(found := _value(record, column), list)]
    turns = [turn for found in lists for turn in found[:4] if isinstance(turn, dict)]
    keys = [name for turn in turns for name in turn]
    role = next((name for name in ROLE_KEYS if name in keys), None)
    text = next((name for name in TEXT_KEYS if name in keys), None)
    if lists and column in TURNS:  # a job says what is wrong with them
        return TurnsColumn(column, role or ROLE_KEYS[0], text or TEXT_KEYS[0])
    return None if role is None or text is None else TurnsColumn(column, role, text)


def _value(record: Record, column: str) -> Any:
    """Return the value under a column, of turns as JSON what it says."""
    try:
        return json_in(record.get(column), "") if column in TURNS else record.get(column)
    except BadInput:
        return None


def _pair(columns: Sequence[str], wishes: Wishes) -> PairColumns | Undecided | None:
    """Return the columns of question and answer; None if there are no such columns."""
    systems = _of_names(columns, SYSTEMS)
    contexts = _of_names(columns, CONTEXTS)
    questions = (
        [wishes.question_column] if wishes.question_column else _of_names(columns, QUESTIONS)
    )
    answers = [wishes.answer_column] if wishes.answer_column else _of_names(columns, ANSWERS)
    if len(questions) > 1:  # Alpaca's input belongs to its instruction
        questions = [name for name in questions if name not in contexts]
    if not questions or not answers:
        return None
    for names, what in ((questions, "question"), (answers, "answer")):
        if len(names) > 1:
            words = f"the columns {_and(names)} could all be the {what}. Which is it?"
            return Undecided(words, tuple(names), f"{what}_column")
    context = next((name for name in contexts if name not in (questions[0], answers[0])), None)
    return PairColumns(questions[0], answers[0], context, next(iter(systems), None))


def _of_names(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [column for column in columns if column.strip().lower() in names]


def _copies(records: Sequence[Record], pair: PairColumns, column: str) -> bool:
    """Return whether a column repeats question and answer, as Alpaca's `text` does."""
    return all(
        str(record.get(name) or "").strip() in str(record.get(column) or "")
        for record in records
        for name in (pair.question, pair.answer)
    )


# ---------------------------------------------------------------- texts


def _texts(records: Sequence[Record], columns: Sequence[str], where: str) -> Columns | Undecided:
    strings = [name for name in columns if any(isinstance(r.get(name), str) for r in records)]
    if not strings:
        kinds = ", ".join(f"{name} ({_kind(records, name)})" for name in columns[:8])
        raise BadInput(f"{where}: no column has text. Its columns: {kinds or 'none'}")
    prose = [name for name in strings if _is_prose(records, name)]
    usual = [USUAL] if USUAL in strings else strings if len(columns) == 1 else prose
    names = tuple(usual or strings)
    words = f"the columns {_and(names)} could all be the text. Which is it?"
    if len(names) == 1:
        (name,) = names
        if name == USUAL and "role" in columns:
            words = "each record is one message of a conversation. Is it a text of its own?"
        elif name in (*QUESTIONS, *ANSWERS):
            words = f"the column {shown(name)} has one half of a conversation. Is it the text?"
        elif not usual:
            words = f"only the column {shown(name)} has text, and few words. Is it the text?"
        else:
            return TextColumn(name)
    return Undecided(words, names, "text_column")


def _kind(records: Sequence[Record], column: str) -> str:
    return type(next((r[column] for r in records if r.get(column) is not None), None)).__name__


def _is_prose(records: Sequence[Record], column: str) -> bool:
    texts = [r[column] for r in records if isinstance(r.get(column), str) and r[column].strip()]
    if not texts:
        return False
    spaced = sum(" " in text.strip() for text in texts)
    return sum(map(len, texts)) >= LEAST_CHARACTERS * len(texts) and 2 * spaced >= len(texts)


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(map(shown, names[:-1]))} and {shown(names[-1])}"


def unused(layout: Columns, record: Record) -> tuple[str, ...]:
    """Return the filled columns of a record that a copy of this layout leaves out."""
    used = {*(vars(layout).values() if isinstance(layout, PairColumns) else (layout.column,))}
    if not isinstance(layout, TextColumn):
        used |= {*NEXT_TO_TURNS}
    return tuple(Fields(record, "").there(*(name for name in record if name not in used)))


def in_words(layout: Layout) -> str:
    """Return what the columns mean; of those that jobs know, a look says the rest."""
    if isinstance(layout, TextColumn):
        return f"the text is in {layout.column}"
    if isinstance(layout, TurnsColumn):
        return (
            f"turns in {layout.column}, the role in {layout.role_key}, the text in "
            f"{layout.text_key}"
        )
    others = {PairColumns: "a question and its answer", Preferences: "preferences"}
    return others.get(type(layout), "prompts and their right answers, which rewards compare with")


def read_by_jobs(layout: Columns, records: Sequence[Record]) -> bool:
    """Return whether a job reads JSON Lines and parquet with these records as they are."""
    if isinstance(layout, TextColumn):
        return True
    if isinstance(layout, TurnsColumn):
        alone = all(len(Fields(record, "").there(*TURNS)) < 2 for record in records)
        return layout.column in (*TURNS, TEXT) and alone
    others = (layout.context is None or layout.context in CONTEXTS) and (
        layout.system is None or layout.system in SYSTEMS
    )
    return layout.question in QUESTIONS and layout.answer in ANSWERS and others
