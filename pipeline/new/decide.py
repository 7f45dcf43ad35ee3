"""Decide how each group of files is read; ask the person at a terminal, or refuse with the option.

Nothing is guessed: where data could mean two things, a person decides.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat, starmap
from pathlib import Path
from typing import Any

from pion.data.prompt.layouts import parse_question
from pion.data.records.layouts import TURNS, kind_of, read_conversation
from pion.errors import BadInput
from pion.later_fields import shown
from pipeline.console.formats import show
from pipeline.new.chats import meaning_of, names_of_roles, unknown_roles
from pipeline.new.files import IN_WORDS, FoundFiles, Group
from pipeline.new.layouts import (
    Preferences,
    Prompts,
    TextColumn,
    TurnsColumn,
    Undecided,
    Wishes,
    is_chat,
    layout_of,
    option_of,
    read_by_jobs,
)
from pipeline.new.look import Reading
from pipeline.new.read import Record
from pipeline.new.sample import Firsts, first_records

# What a person can say that a name means.
ROLES = ("user", "assistant", "system")
# The kinds of files whose records a job reads, too.
READ_BY_JOBS = ("jsonl", "parquet")


def _answer(undecided: Undecided, where: str) -> str:
    """Return the person's answer.

    Raises BadInput without a terminal, naming the option that decides, and for another answer.
    """
    options = " or ".join(f"{option_of(undecided.name)} {a}" for a in undecided.answers[:4])
    if not sys.stdin.isatty():
        raise BadInput(f"{where}: {undecided.question} Decide with {options}. Nothing was written.")
    show(f"{where}: {undecided.question}")
    for number, answer in enumerate(undecided.answers, 1):
        show(f"  {number}  {answer}")
    try:
        given = input("number: ").strip()
    except EOFError:
        given = ""
    if given in undecided.answers:
        return given
    if not given.isdecimal() or not 1 <= int(given[:6]) <= len(undecided.answers):
        raise BadInput(f"{given!r:.40} is none of the answers. Nothing was written.")
    return undecided.answers[int(given) - 1]


def decide(found: FoundFiles, wishes: Wishes) -> list[Reading]:
    """Return how each group that is used is read.

    Raises BadInput if text and conversations, or preferences and other data, are mixed and nobody
    said which is meant.
    """
    firsts = [first_records(group) for group in found.groups]
    says_how = wishes.columns or wishes.use in ("text", "chats")
    if not says_how and _has_preferences(found.groups, firsts):
        (group,) = found.groups
        return [Reading(group, Preferences(), direct=group.kind in READ_BY_JOBS)]
    of_files = [records for _, records in chain.from_iterable(firsts)]
    if not says_how and all(firsts) and all(starmap(_is_prompt, chain(*of_files))):
        return [Reading(g, Prompts(), direct=g.kind in READ_BY_JOBS) for g in found.groups]
    readings = list(map(_reading, found.groups, firsts, repeat(wishes)))
    chats = [r for r in readings if is_chat(r.layout)]
    texts = [r for r in readings if not is_chat(r.layout)]
    if wishes.use in ("text", "chats"):
        chosen = chats if wishes.use == "chats" else texts
        if not chosen:
            raise BadInput(
                f"--use {wishes.use}: {found.groups[0].path} has no {wishes.use}, only "
                f"{'text' if chosen is chats else 'conversations'}. Leave out --use, or name the "
                "column: --text-column NAME, or --question-column NAME --answer-column NAME"
            )
        return chosen
    if chats and texts and wishes.use is None:
        raise BadInput(
            f"text and conversations are mixed: {texts[0].group.files[0]} is text, and "
            f"{chats[0].group.files[0]} has conversations. Text is for pretraining, conversations "
            "are for fine-tuning. Say what to use: --use text, --use chats, or --use both "
            "(pretrain on the text, then fine-tune). Nothing was written."
        )
    return readings


def _has_preferences(groups: Sequence[Group], firsts: Sequence[Firsts]) -> bool:
    """Return whether data are preferences.

    Raises BadInput if only some of the files are, and for files of several kinds.
    """
    others = [group.files[0] for group in groups if group.kind == "text"]
    ours: list[Path] = []
    for file, records in chain.from_iterable(firsts):
        known = any(kind_of(record) in ("pair", "label") for _, record in records)
        (ours if known else others).append(file)
    if ours and others:
        raise BadInput(
            f"preferences and other data are mixed: {ours[0]} has preferences, and {others[0]} has "
            "none. Give one of the files, or move them into folders of their own. Nothing was "
            "written."
        )
    if ours and len(groups) > 1:
        kinds = ", ".join(IN_WORDS[group.kind] for group in groups)
        raise BadInput(
            f"the preferences are in files of several kinds ({kinds}). Give one of the files, or "
            "move them into folders of their own. Nothing was written."
        )
    return bool(ours)


def _is_prompt(where: str, record: Record) -> bool:
    """Return whether a record is a prompt with a right answer, and no conversation."""
    if kind_of(record) is not None and record.keys().isdisjoint(TURNS):
        return False  # nobody guesses which of its answers is learned
    try:
        read_conversation(record, where)
    except BadInput:
        with suppress(BadInput):
            return parse_question(record, where).answer is not None
    return False


def _reading(group: Group, firsts: Firsts, wishes: Wishes) -> Reading:
    if not firsts:  # text, or nothing can be read: the look says why
        return Reading(group, TextColumn("text"), direct=True)
    if not wishes.columns:
        _refuse_mixed_files(firsts, wishes)
    named = [item for _, found in firsts for item in found]
    records = [record for _, record in named]
    where = str(firsts[0][0])
    while isinstance(layout := layout_of(records, wishes, where), Undecided):
        answer: Any = {layout.name: _answer(layout, where)}
        wishes = replace(wishes, **answer)
    roles = {}
    if isinstance(layout, TurnsColumn):
        roles = _roles(names_of_roles(named, layout), wishes.roles)
    known = group.kind in READ_BY_JOBS and read_by_jobs(layout, records)
    return Reading(group, layout, known and not roles, roles)


def _refuse_mixed_files(firsts: Firsts, wishes: Wishes) -> None:
    """Raise BadInput if some of the files are text and others have conversations."""
    first_of: dict[bool, Path] = {}
    for file, found in firsts:
        layout = layout_of([record for _, record in found], wishes, str(file))
        if not isinstance(layout, Undecided):
            first_of.setdefault(is_chat(layout), file)
    if len(first_of) == 2:
        raise BadInput(
            f"text and conversations are mixed: {first_of[False]} is text, and {first_of[True]} "
            "has conversations. A source of a job has one of them. Give one of the files, or move "
            "them into folders of their own. Nothing was written."
        )


def _roles(found: dict[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the meanings of names that Pion does not know, or that the person changed."""
    roles = dict(given)
    unknown = [name for name in found if meaning_of(name, roles) is None]
    if unknown and not sys.stdin.isatty():
        raise unknown_roles(found, roles)
    for name in unknown:
        asked = Undecided(f"what does the role {shown(name)} mean?", ROLES, "roles")
        roles[name.strip().lower()] = _answer(asked, found[name])
    names = {name.strip().lower() for name in found}
    return {n: role for n, role in roles.items() if n in names and meaning_of(n, {}) != role}
