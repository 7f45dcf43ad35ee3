"""What page and card show, one block below the other: sentences, tables and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A table of texts. Columns from `numbers_from` are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 1


class Bar(NamedTuple):
    """A model's result: its name, the value in words, and the value."""

    name: str
    words: str
    value: float


class Bars(NamedTuple):
    """Results to be drawn as bars, the smallest first. `names` is what the names are of."""

    names: str
    bars: Sequence[Bar]


Block = str | Table | Bars
