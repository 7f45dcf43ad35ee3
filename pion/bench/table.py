"""Print the rows as a table, each as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence

from pion.bench.card import Card
from pion.bench.results import Row

_SIGNS = {"right": "✓", "wrong": "✗", "measured": "·", "left out": "-"}


class Table:
    """A table whose first column fits these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._width = max((len(name) for name in names), default=0)

    def line(self, row: Row, *, kept: bool = False) -> str:
        """Return a row as a line. `kept` marks a row that an earlier run has measured."""
        took = "  kept" if kept else f"{row.seconds:5.1f}s"
        said = f"{row.verdict}: {row.words}" if row.verdict in ("wrong", "left out") else row.words
        return f"{_SIGNS[row.verdict]} {row.name:<{self._width}} {took}  {said}"


def heading(card: Card) -> str:
    """Return what the table is about."""
    capability = f", capability {card.capability}" if card.capability else ""
    driver = f", driver {card.driver}" if card.driver else ""
    cuda = f", CUDA {card.cuda}" if card.cuda else ""
    return (
        f"{card.card}{capability}, {card.memory / 2**30:.1f} GiB{driver}\n"
        f"torch {card.torch}{cuda}, pion {card.pion} (code {card.code})"
    )


def summary(rows: Sequence[Row]) -> str:
    """Return how many rows have each verdict."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in _SIGNS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
