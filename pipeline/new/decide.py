"""Decide how each group of files is read; ask the person at a terminal, or refuse with the option.

Nothing is guessed: where data could mean two things, a person decides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.later_fields import shown
from pipeline.console.formats import show
from pipeline.new.chats import meaning_of, names_of_roles, unknown_roles
from pipeline.new.files import Found, Group
from pipeline.new.layouts import (
    Asked,
    Layout,
    TextColumn,
    TurnsColumn,
    Undecided,
    is_chat,
    layout_of,
    read_by_jobs,
)
from pipeline.new.look import Reading
from pipeline.new.read import Item
from pipeline.new.sample import first_records

# The field of `Asked` that each option sets.
FIELDS = {
    "--use": "use",
    "--text-column": "text",
    "--turns-column": "turns",
    "--question-column": "question",
    "--answer-column": "answer",
}
Ask = Callable[[Undecided, str], str]


@dataclass(frozen=True)
class Wishes:
    """What the person said about the data."""

    columns: Asked = field(default_factory=Asked)
    roles: dict[str, str] = field(default_factory=dict)
    both: bool = False  # text and conversations: pretrain, then fine-tune


def ask_or_refuse(undecided: Undecided, where: str) -> str:
    """Return the person's answer.

    Raises BadInput without a terminal, naming the option that decides, and for another answer.
    """
    options = " or ".join(f"{undecided.option} {answer}" for answer in undecided.answers[:4])
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


def decide(found: Found, wishes: Wishes, ask: Ask = ask_or_refuse) -> list[Reading]:
    """Return how each group that is used is read.

    Raises BadInput if text and conversations are mixed and nobody said which is meant.
    """
    readings = [_reading(group, wishes, ask) for group in found.groups]
    chats = [r for r in readings if is_chat(r.layout)]
    texts = [r for r in readings if not is_chat(r.layout)]
    use = wishes.columns.use
    if use is not None:
        chosen = chats if use == "chats" else texts
        if not chosen:
            raise BadInput(
                f"--use {use}: {found.groups[0].path} has no {use}, only "
                f"{'text' if use == 'chats' else 'conversations'}. Leave out --use, or name the "
                "column: --text-column NAME, or --question-column NAME --answer-column NAME"
            )
        return chosen
    if chats and texts and not wishes.both:
        raise _mixed(texts[0].group.files[0], chats[0].group.files[0])
    return readings


def _mixed(text: object, chat: object) -> BadInput:
    return BadInput(
        f"text and conversations are mixed: {text} is text, and {chat} has conversations. Text is "
        "for pretraining, conversations are for fine-tuning. Say what to use: --use text, --use "
        "chats, or --use both (pretrain on the text, then fine-tune). Nothing was written."
    )


def _reading(group: Group, wishes: Wishes, ask: Ask) -> Reading:
    if group.kind == "text":
        return Reading(group, TextColumn("text"), direct=True)
    firsts = [(file, items) for file, items in first_records(group) if items]
    records = [item.record for _, items in firsts for item in items if item.record is not None]
    if not records:  # nothing can be read: the look says why
        return Reading(group, TextColumn("text"), direct=True)
    if not wishes.columns.names_a_column:
        _refuse_mixed_files(firsts, wishes.columns)
    layout = _decided(records, wishes.columns, str(firsts[0][0]), ask)
    if not isinstance(layout, TurnsColumn):
        return Reading(group, layout, _direct(group, layout, records))
    named = [(i.where, i.record) for _, items in firsts for i in items if i.record is not None]
    roles = _roles(names_of_roles(named, layout), wishes.roles, ask)
    return Reading(group, layout, not roles and _direct(group, layout, records), roles)


def _refuse_mixed_files(firsts: list[tuple[Path, list[Item]]], columns: Asked) -> None:
    """Raise BadInput if some of the files are text and others have conversations."""
    first_of: dict[bool, Path] = {}
    for file, items in firsts:
        layout = layout_of([i.record for i in items if i.record], columns, str(file))
        if not isinstance(layout, Undecided):
            first_of.setdefault(is_chat(layout), file)
    if len(first_of) == 2:
        raise BadInput(
            f"text and conversations are mixed: {first_of[False]} is text, and {first_of[True]} "
            "has conversations. A source of a job has one of them. Give one of the files, or move "
            "them into folders of their own. Nothing was written."
        )


def _decided(records: list[dict[str, Any]], columns: Asked, where: str, ask: Ask) -> Layout:
    found = layout_of(records, columns, where)
    while isinstance(found, Undecided):
        columns = replace(columns, **{FIELDS[found.option]: ask(found, where)})
        found = layout_of(records, columns, where)
    return found


def _direct(group: Group, layout: Layout, records: list[dict[str, Any]]) -> bool:
    """Return whether a job reads these files as they are."""
    return group.kind in ("jsonl", "parquet") and read_by_jobs(layout, records)


def _roles(found: dict[str, str], given: dict[str, str], ask: Ask) -> dict[str, str]:
    """Return the meanings of names that Pion does not know, or that the person changed."""
    roles = dict(given)
    unknown = [name for name in found if meaning_of(name, roles) is None]
    if unknown and not sys.stdin.isatty():
        raise unknown_roles(found, roles)
    for name in unknown:
        question = f"what does the role {shown(name)} mean?"
        meaning = ask(Undecided(question, ("user", "assistant", "system"), "--roles"), found[name])
        roles[name.strip().lower()] = meaning
    names = {name.strip().lower() for name in found}
    return {n: role for n, role in roles.items() if n in names and meaning_of(n, {}) != role}
