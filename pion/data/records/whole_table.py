"""Recognize a whole table that was written as one JSON object, which is no record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.data.records.layouts import TURNS
from pion.data.records.turns import ROLE_KEYS

# What such an object calls its list of records.
LISTS = ("data", "rows", "records", "examples", "items", "instances", "samples", "train")
_PANDAS = (
    "it is a table as pandas writes it with orient={0!r}. Write a record on each line: python -c "
    "\"import pandas; pandas.read_json('FILE', orient='{0}')"
    ".to_json('NEW.jsonl', orient='records', lines=True)\""
)


def table_in(value: Mapping[str, Any]) -> str | None:
    """Return what a JSON object is, and how to make JSON Lines of it, if it is a whole table: a
    list of records under a key, or one of the layouts that pandas writes; else None."""
    inner = [set(row) for row in value.values() if isinstance(row, Mapping)]
    if inner and len(inner) == len(value) and all(keys == inner[0] for keys in inner):
        if all(map(str.isdecimal, value)):
            return _PANDAS.format("index")
        return None if inner[0] & {*ROLE_KEYS} else _PANDAS.format("columns")
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return _PANDAS.format("split")
    for name in LISTS if value.keys().isdisjoint(TURNS) else ():
        if isinstance(items := value.get(name), list) and items and isinstance(items[0], Mapping):
            return f"its records are under {name!r}. Take them: jq -c .{name}[] FILE > NEW.jsonl"
    return None
