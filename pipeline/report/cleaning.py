"""What `data.clean` left out of the text of a run: in a sentence, and as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from pipeline.console.formats import duration, size
from pipeline.report.results import SEARCHED_SET, list_of, record_type
from pipeline.state.head import Head
from pipeline.state.record_json import Amount, Count, build, open_record

TITLE = "Cleaning"
SETS = (
    "questions",
    "items",
    "can't be judged",
    "in a document",
    "with the answer",
    "held-out text in a document",
    "verdict",
)
NO_NAME = "a source"


# A document: the number of its source, where it is there, and the beginning of its text.
_SHOWN: dict[str, Any] = {"source": Count, "document": str, "text": str}
# A document that was left out: the document that it is like, the item that it holds.
_EXAMPLE = record_type(**_SHOWN, like=NotRequired[record_type(**_SHOWN)], item=NotRequired[str])
# The documents that a rule left out.
_DROPPED = record_type(rule=str, documents=Count, examples=list_of(_EXAMPLE))
# How many documents a source has, and how many of them are kept.
_OF_SOURCE = record_type(documents=Count, kept=Count)
# What was kept of all documents, and what was left out.
_CLEANED = record_type(
    documents=Count,
    kept=Count,
    bytes=Count,
    sources=list_of(_OF_SOURCE),
    dropped=list_of(_DROPPED),
    sets=list_of(SEARCHED_SET),
    seconds=Amount,
)
_SOURCE = record_type(total=False, name=str)
# What prepare reported of the text, and the result of the prepare stage.
_TEXT = open_record(record_type(total=False, sources=list_of(_SOURCE), cleaned=_CLEANED))
Prepared: type[Mapping[str, Any]] = open_record(record_type(total=False, pretrain=_TEXT))


def text_of(head: Head, run: str) -> Mapping[str, Any]:
    """Return what the run at the address `run` reported of its text; empty before it is prepared.

    Raises Damaged.
    """
    record = head.stages.get("prepare")
    found = {} if record is None else record.result
    where = f"{run}/HEAD.json"
    prepared = build(Prepared, found, where, under="stages.prepare.result")
    text: Mapping[str, Any] = prepared.get("pretrain", {})
    return text


def cleaning_in_words(text: Mapping[str, Any]) -> str:
    """Return in a sentence what was left out; "" if the text was not cleaned."""
    cleaned = text.get("cleaned")
    if cleaned is None:
        return ""
    documents, left_out = cleaned["documents"], cleaned["documents"] - cleaned["kept"]
    rules = ", ".join(f"{one['rule']} {one['documents']:,}" for one in cleaned["dropped"])
    share = f"{100 * left_out / max(documents, 1):.1f} %"
    return f"{left_out:,} of {documents:,} documents were left out ({share})" + (
        f": {rules}" if rules else ""
    )


def cleaning_sections(text: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the page's section about cleaning, if the text was cleaned."""
    cleaned = text.get("cleaned")
    if cleaned is None:
        return []
    names = [one.get("name", NO_NAME) for one in text.get("sources", [])]
    read = f"{size(cleaned['bytes'])} of text were read in {duration(cleaned['seconds'])}."
    blocks: list[dict[str, Any]] = [
        {"text": f"{cleaning_in_words(text)}. {read}", "faint": False},
        _table(
            ("source", "documents", "kept"),
            [
                (_name(names, number), f"{one['documents']:,}", f"{one['kept']:,}")
                for number, one in enumerate(cleaned["sources"])
            ],
        ),
    ]
    if cleaned["dropped"]:
        blocks.append(_examples(names, cleaned["dropped"]))
    if cleaned["sets"]:
        blocks += _searched(cleaned["sets"])
    return [{"title": TITLE, "blocks": blocks}]


def _examples(names: Sequence[str], dropped: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a list: under each rule, some of the documents that it left out."""
    entries = []
    for one in dropped:
        lines = []
        for example in one["examples"]:
            lines.append(f"{_where(names, example)}: {example['text']}")
            if "like" in example:
                like = example["like"]
                lines.append(f"↳ is like {_where(names, like)}: {like['text']}")
            if "item" in example:
                lines.append(f"↳ holds {example['item']}")
        entries.append((f"{one['rule']}: {one['documents']:,}", lines))
    return {"entries": entries}


def _searched(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is in the text of the evaluation sets, and what that means."""
    note = (
        "Evaluation sets: how many of their items are in documents to train on, before these "
        "documents were left out. The control is excerpts of held-out text: as much is found "
        "without any leak."
    )
    rows = [
        (
            one["name"],
            f"{one['items']:,}",
            f"{one['unjudged']:,}",
            *map(_share, (one["overlapped"], one["with_answer"], one["control"])),
            one["verdict"],
        )
        for one in sets
    ]
    return [{"text": note, "faint": True}, _table(SETS, rows)]


def _share(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['share']:.1f} % (95 %: {low:.1f} to {high:.1f})"


def _where(names: Sequence[str], shown: Mapping[str, Any]) -> str:
    return f"{_name(names, shown['source'])}, {shown['document']}"


def _name(names: Sequence[str], source: int) -> str:
    return names[source] if source < len(names) else NO_NAME


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"header": list(header), "rows": rows, "numbers_from": 1}
