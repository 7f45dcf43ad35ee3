"""Decide how each group of files is read; ask the person at a terminal, or refuse with the option.

`pion.data.records.layouts` says what the keys of a record mean. Only what no job reads as it is, or
what could mean two things, is decided here: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pion.data.chat.conversation import ALIASES, ROLES
from pion.data.chat.messages import KNOWN_ROLES
from pion.data.prompt.layouts import RIGHT, parse_question
from pion.data.records.fields import json_in
from pion.data.records.layouts import (
    ANSWERS,
    CONTEXTS,
    QUESTIONS,
    SIDES,
    SYSTEMS,
    TEXT,
    TURNS,
    kind_of,
    read_conversation,
)
from pion.data.records.transcripts import marked
from pion.data.records.turns import TEXT_KEYS, known_role, plain_name, role_said
from pion.errors import BadInput
from pion.later_fields import closest, shown
from pipeline.console.formats import some
from pipeline.new.data_set import LEARNED, READ_BY_JOBS, DataSet
from pipeline.new.options import NewOptions
from pipeline.new.read import ReadItem, Record, Sample

# So many records of so many files show their layout.
LAYOUT_FILES, LAYOUT_RECORDS = 16, 100
# A column of texts has at least so many characters on average, and spaces. Names, labels, numbers
# and addresses have less.
LEAST_CHARACTERS = 16
# What pandas calls columns that have no more than the numbers of rows.
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")


def decide(samples: Sequence[Sample], options: NewOptions) -> list[DataSet]:
    """Return how each group that is used is read.

    Raises BadInput if text and conversations, or preferences and other data, are mixed and nobody
    said which is meant.
    """
    data_sets = [_data_set(sample, options) for sample in samples]
    first = {data.stage: data.group.files[0] for data in data_sets}
    if options.use in ("text", "chats"):
        chosen = [r for r in data_sets if (r.stage == "pretrain") == (options.use == "text")]
        if not chosen:
            raise BadInput(
                f"--use {options.use}: {samples[0].group.path} has no {options.use}, only "
                f"{LEARNED[data_sets[0].stage]}. Leave out --use, or name the column: "
                "--text-column NAME, or --question-column NAME --answer-column NAME"
            )
        return chosen
    of_both = first.keys() == {"pretrain", "sft"}
    if len(first) > 1 and not (of_both and options.use):
        use = (
            "Text is for pretraining, conversations are for fine-tuning. Say what to use: --use "
            "text, --use chats, or --use both (pretrain on the text, then fine-tune)"
        )
        raise _mixed(first, use if of_both else _APART)
    return data_sets


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


def _data_set(sample: Sample, options: NewOptions) -> DataSet:
    group, first, every = sample.group, dict[str, Path](), list[ReadItem]()
    for file, items in islice(sample.files.items(), LAYOUT_FILES):
        readable = [item for item in items if item.record is not None][:LAYOUT_RECORDS]
        every += readable
        if readable and not options.columns:
            with suppress(BadInput):
                first.setdefault(_layout(readable, replace(options, asks=False), file)[0], file)
    if group.kind == "text" or not every:  # nothing can be read: the look says why
        return DataSet(sample, "pretrain", {TEXT: TEXT}, path=group.path)
    if len(first) > 1:
        raise _mixed(first, _APART)
    stage, columns = _layout(every, options, group.files[0])
    roles = _roles(every, columns, options) if stage == "sft" else {}
    columns = columns or {key: key for key in TURNS if roles}
    renamed = bool(columns) and stage != "pretrain"
    copied = renamed or group.kind not in READ_BY_JOBS
    return DataSet(sample, stage, columns, roles, copied, group.path)


def _layout(
    items: Sequence[ReadItem], options: NewOptions, file: Path
) -> tuple[str, dict[str, str]]:
    """Return the stage that learns from records, and the new names of their columns.

    Raises BadInput as `NewOptions.ask` does, if no column has texts, and for a column that a person
    named and that is not there.
    """
    records = [item.record for item in items if item.record is not None]
    names = dict.fromkeys(name for record in records for name in record)
    columns = [name for name in names if not _INDEX.fullmatch(name)]
    listed = f"Its columns: {', '.join(columns) or 'none'}"
    for content, name in options.columns.items():
        if name not in columns:
            near = closest(name, columns)
            raise BadInput(f"--{content}-column {name}: {file} has no such column{near}. {listed}")
    if text := options.columns.get("text"):
        return "pretrain", {text: TEXT}
    if not options.columns and options.use not in ("text", "chats"):
        if any(kind_of(record) in ("pair", "label") for record in records):
            return "prefer", {}
        stages = {_converses(record) for record in records}
        if "reinforce" in stages and "sft" not in stages:
            return "reinforce", {}
    renamed = _chats(records, columns, options, file)
    if renamed is not None:
        return "sft", renamed
    if options.columns:
        raise BadInput(
            f"{file}: no column has turns with a role and a text, and no two columns have the "
            f"names of a question and an answer. {listed}. Name them: --question-column NAME "
            "--answer-column NAME"
        )
    return "pretrain", {_text_column(records, columns, options, file): TEXT}


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
    records: Sequence[Record], columns: Sequence[str], options: NewOptions, file: Path
) -> dict[str, str] | None:
    """Return the new names of the columns of conversations; None if there are none."""
    chosen, by_pair = options.columns.get("turns"), options.columns.keys() & {"question", "answer"}
    # A prompt and an answer may be lists of turns, too.
    sides = (*QUESTIONS, *ANSWERS, *(key for keys in SIDES for key in keys))
    names = [name for name in columns if name not in sides or name == chosen]
    turns = [name for name in names if any(_has_turns(record, name) for record in records)]
    if chosen is not None:
        return {chosen: TURNS[0]} if chosen in turns else None
    if turns and not by_pair:
        if any(sum(bool(record.get(name)) for name in turns) > 1 for record in records):
            question = f"the columns {_and(turns)} all have turns. Which has the conversations?"
            return {options.ask(f"{file}: {question}", turns, "--turns-column"): TURNS[0]}
        return {name: TURNS[0] for name in turns if name not in TURNS}
    pair = _pair(columns, options, file)
    if pair is None:
        texts = (n for n in columns if any(marked(record.get(n)) for record in records))
        name = None if options.use == "text" else next(texts, None)
        return None if name is None else {n: TURNS[0] for n in (name,) if n != TEXT}
    use = "chats" if by_pair or TEXT not in columns else options.use
    if use not in ("text", "chats") and not _repeated(records, pair):
        question = (
            f"the columns {pair['prompt']} and {pair['completion']} could be conversations, and "
            f"the column {TEXT} could be documents. Which are used?"
        )
        use = options.ask(f"{file}: {question}", ("chats", "text"), "--use")
    if use == "text":
        return None
    sure = all(len(_named(columns, keys)) == 1 for keys in (QUESTIONS, ANSWERS))
    read = (*QUESTIONS, *ANSWERS, *CONTEXTS, *SYSTEMS)
    if not by_pair and sure and all(column in read for column in pair.values()):
        return {}  # a job reads them as they are
    return {column: key for key, column in pair.items()}


def _has_turns(record: Record, column: str) -> bool:
    """Return whether a column has a list of turns, also as JSON in a text."""
    turns = record.get(column)
    with suppress(BadInput):
        turns = json_in(turns, "") if column in TURNS else turns
    if not isinstance(turns, list):
        return False
    if column in TURNS:
        return True  # a job says what is wrong with its own
    spoken = (turn for turn in turns[:4] if role_said(turn) is not None)
    return any(not turn.keys().isdisjoint(TEXT_KEYS) for turn in spoken)


def _pair(columns: Sequence[str], options: NewOptions, file: Path) -> dict[str, str] | None:
    """Return the columns of a question and its answer, by what a job calls them; None if there are
    no such columns."""
    pair: dict[str, str] = {}
    for content, key, keys in (
        ("question", "prompt", QUESTIONS),
        ("answer", "completion", ANSWERS),
    ):
        names, name = _named(columns, keys), options.columns.get(content)
        if name is None and len(names) > 1:
            question = f"{file}: the columns {_and(names)} could all be the {content}. Which is it?"
            name = options.ask(question, names, f"--{content}-column")
        if name is None and not names:
            return None
        pair[key] = name or names[0]
    columns_of = {"context": _lower_in(columns, CONTEXTS), "system": _lower_in(columns, SYSTEMS)}
    free = {key: [n for n in names if n not in pair.values()] for key, names in columns_of.items()}
    return pair | {key: names[0] for key, names in free.items() if names}


def _named(columns: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the columns of questions or answers. Alpaca's input belongs to its instruction."""
    names = _lower_in(columns, keys)
    return [n for n in names if n.strip().lower() not in CONTEXTS] if len(names) > 1 else names


def _lower_in(columns: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [column for column in columns if column.strip().lower() in keys]


def _repeated(records: Sequence[Record], pair: Mapping[str, str]) -> bool:
    """Return whether the column `text` repeats question and answer, as Alpaca's does."""
    return all(
        str(record.get(name) or "").strip() in str(record.get(TEXT) or "")
        for record in records
        for name in (pair["prompt"], pair["completion"])
    )


def _roles(
    items: Sequence[ReadItem], columns: Mapping[str, str], options: NewOptions
) -> dict[str, str]:
    """Return the meanings of names that Pion does not know, or that the person changed.

    Raises BadInput for names that nobody knows, without a terminal.
    """
    first: dict[str, str] = {}
    for item in items:
        values = [(item.record or {}).get(column) for column in (*TURNS, *columns)]
        for turn in (t for turns in values if isinstance(turns, list) for t in turns):
            first.setdefault((role_said(turn) or "").strip(), item.where)
    roles = {name: known_role(plain_name(name) or "") for name in first if name}
    unknown = [name for name in roles if not roles[name] and name.lower() not in options.roles]
    if unknown and not options.can_ask:
        near = closest(unknown[0].lower(), (*KNOWN_ROLES, *ROLES, *ALIASES)) or "."
        example = ",".join(f"{name}={role}" for name, role in zip(unknown, ("user", "assistant")))
        raise BadInput(
            f"{first[unknown[0]]}: unknown role {shown(unknown[0])}{near} Unknown in all: "
            f"{some([*map(shown, unknown)], 4)}. Say what each of them means, for example: "
            f"--roles '{example}'. The roles are {', '.join(KNOWN_ROLES)}"
        )
    for name in unknown:
        question = f"{first[name]}: what does the role {shown(name)} mean?"
        options.roles[name.lower()] = options.ask(question, KNOWN_ROLES[:3], "--roles")
    meant = {name: options.roles.get(name.lower(), roles[name]) for name in roles}
    return {name.lower(): role for name, role in meant.items() if role and role != roles[name]}


# ---------------------------------------------------------------- texts


def _text_column(
    records: Sequence[Record], columns: Sequence[str], options: NewOptions, file: Path
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
    column, *others = usual or strings
    odd = {
        f"the columns {_and(usual or strings)} could all be the text. Which is it?": bool(others),
        "each record is one message of a conversation. Is each one a separate text?": (
            column == TEXT and "role" in columns
        ),
        f"the column {shown(column)} has one half of a conversation. Is it the text?": (
            column in (*QUESTIONS, *ANSWERS, *RIGHT)
        ),
        f"only the column {shown(column)} has text, and few words. Is it the text?": not usual,
    }
    question = next((question for question, holds in odd.items() if holds), None)
    if question is None:
        return column
    return options.ask(f"{file}: {question}", usual or strings, "--text-column")


def _is_prose(texts: Sequence[str]) -> bool:
    filled = [text.strip() for text in texts if text.strip()]
    spaced = sum(" " in text for text in filled)
    enough = LEAST_CHARACTERS * max(1, len(filled))
    return sum(map(len, filled)) >= enough and 2 * spaced >= len(filled)


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(map(shown, names[:-1]))} and {shown(names[-1])}"
