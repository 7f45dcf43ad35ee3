"""What `data.clean` left out of the text of a run: in a sentence, and as a section of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import duration, size
from pipeline.report.blocks import interval_in_words, table_block, text_block

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


def cleaning_in_words(text: Mapping[str, Any]) -> str:
    """Return in a sentence what was left out; "" if the text was not cleaned."""
    cleaned = text.get("cleaned")
    if cleaned is None:
        return ""
    documents, left_out = cleaned["documents"], cleaned["documents"] - cleaned["kept"]
    rules = ", ".join(f"{rule['rule']} {rule['documents']:,}" for rule in cleaned["dropped"])
    share = f"{100 * left_out / max(documents, 1):.1f} %"
    return f"{left_out:,} of {documents:,} documents were left out ({share})" + (
        f": {rules}" if rules else ""
    )


def cleaning_sections(text: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the page's section about cleaning, if the text was cleaned."""
    cleaned = text.get("cleaned")
    if cleaned is None:
        return []
    names = [source.get("name", NO_NAME) for source in text.get("sources", [])]
    read = f"{size(cleaned['bytes'])} of text were read in {duration(cleaned['seconds'])}."
    blocks: list[dict[str, Any]] = [
        text_block(f"{cleaning_in_words(text)}. {read}"),
        table_block(
            ("source", "documents", "kept"),
            [
                (_name(names, number), f"{source['documents']:,}", f"{source['kept']:,}")
                for number, source in enumerate(cleaned["sources"])
            ],
        ),
    ]
    if cleaned["dropped"]:
        blocks.append(_examples(names, cleaned["dropped"]))
    if cleaned["sets"]:
        blocks += _searched(cleaned["sets"])
    return [{"title": "Cleaning", "blocks": blocks}]


def _examples(names: Sequence[str], dropped: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a list: under each rule, some of the documents that it left out."""
    entries = []
    for rule in dropped:
        lines = []
        for example in rule["examples"]:
            lines.append(f"{_where(names, example)}: {example['text']}")
            if "like" in example:
                like = example["like"]
                lines.append(f"↳ is like {_where(names, like)}: {like['text']}")
            if "item" in example:
                lines.append(f"↳ holds {example['item']}")
        entries.append((f"{rule['rule']}: {rule['documents']:,}", lines))
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
            evaluation_set["name"],
            f"{evaluation_set['items']:,}",
            f"{evaluation_set['unjudged']:,}",
            *map(
                _share,
                (
                    evaluation_set["overlapped"],
                    evaluation_set["with_answer"],
                    evaluation_set["control"],
                ),
            ),
            evaluation_set["verdict"],
        )
        for evaluation_set in sets
    ]
    return [text_block(note, faint=True), table_block(SETS, rows)]


def _share(interval: Mapping[str, float] | None) -> str:
    return (
        "–"
        if interval is None
        else interval_in_words(interval["share"], interval["low"], interval["high"])
    )


def _where(names: Sequence[str], shown: Mapping[str, Any]) -> str:
    return f"{_name(names, shown['source'])}, {shown['document']}"


def _name(names: Sequence[str], source: int) -> str:
    return names[source] if source < len(names) else NO_NAME
