"""The job's sources of preferences: pairs, or answers with a label, from the files of others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pion.data.documents import python_docs
from pion.data.documents.python_preferences import docs_pairs
from pion.data.preference.layouts import Pair, Preference, parse_preference
from pion.data.preference.summary import Kind
from pion.errors import BadInput
from pipeline.data.remarks import Remarks
from pipeline.data.sources import Input, parsed
from pipeline.job import Job, PythonDocsPrefer

_IN_WORDS = {"pairs": "a pair", "labels": "an answer with a label"}


@dataclass(frozen=True)
class Read:
    """A record of a source.

    Attributes:
        preference: what it says; a text says why it can't be used, with its file and line.
        required: whether it must be usable: it was looked at before anything was rented.
        held_out: whether it is held out; None: its prompt decides.
    """

    preference: Preference | str
    required: bool
    held_out: bool | None = None

    @property
    def kind(self) -> Kind | None:
        """Which kind of rows it makes; None if it can't be used."""
        return None if isinstance(self.preference, str) else kind_of(self.preference)


def kind_of(preference: Preference) -> Kind:
    """Return which kind of rows a preference makes."""
    return "pairs" if isinstance(preference, Pair) else "labels"


def kind_of_source(job: Job, found: Input) -> Kind:
    """Return which kind of rows a source makes, by its first record that can be used.

    Raises BadInput as `preferences` does, and if none can be used.
    """
    for read in preferences(job, found):
        if read.kind is not None:
            return read.kind
    raise BadInput(f"{found.key}: none of its records is a preference. Use another data set")


def check_kinds(job: Job, inputs: list[Input]) -> None:
    """Let the job know whether its preferences are pairs or labels, before any work.

    Raises BadInput if the loss can't learn from them, for sources of both kinds, and for a first
    record that is no preference.
    """
    assert job.prefer is not None
    kinds = {source_input.key: kind_of_source(job, source_input) for source_input in inputs}
    for key, kind in kinds.items():
        first = next(iter(kinds))
        if kind != kinds[first]:
            raise BadInput(
                f"{key} has {_MANY[kind]}, but {first} has {_MANY[kinds[first]]}. A job "
                "learns from one of the two. Nothing was trained. Remove one of the sources"
            )
        job.prefer.know_kind(kind, key)


_MANY = {"pairs": "pairs", "labels": "single answers with labels"}


def preferences(job: Job, found: Input, remarks: Remarks | None = None) -> Iterator[Read]:
    """Yield every preference of a source, and note it in `remarks`.

    All of them are of the kind of the first. Of a data set on the Hub, records after the first
    SAMPLED may be unusable.

    Pairs about the standard library are held out with the files that pretraining holds out.
    Raises BadInput for a source that can't be read, and for other records that are no preferences.
    """
    if isinstance(found.source, PythonDocsPrefer):
        for pair in docs_pairs(found.source.better):
            held_out = python_docs.is_held_out(pair.chosen.where, job.data.held_out)
            yield Read(pair, required=True, held_out=held_out)
        return
    first: tuple[Kind, str] | None = None

    def parse(value: Any, where: str) -> Preference:
        nonlocal first
        preference = parse_preference(value, where)
        ours = kind_of(preference)
        kind, origin = first = first or (ours, where)
        if ours != kind:
            raise BadInput(
                f"{where}: found {_IN_WORDS[ours]}, but {origin} has {_IN_WORDS[kind]}. A source "
                "has one kind of preferences: use two files"
            )
        return preference

    for record, preference, required in parsed(job, found, parse, remarks):
        if isinstance(preference, str):
            yield Read(preference, required)
            continue
        if remarks is not None:
            sides = [[c.messages, c.tools] for c in preference.conversations]
            remarks.note(preference.conversations[0].seen, sides, record.origin)
        yield Read(preference, required, record.held_out)
