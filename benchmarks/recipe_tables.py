"""The table of docs/recipes.md, from benchmarks/results/recipes.json.

uv run python -m benchmarks.recipe_tables
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.recipe_arms import ARMS, RIVALS, SIZES
from benchmarks.recipes import RESULTS

Rows = list[dict[str, Any]]


def table(rows: Rows) -> Iterator[str]:
    """Yield the lines of a table of the arms that have raced: for each size, bits per byte at equal
    FLOPs, less those of the demo's Muon."""
    yield f"| | {' | '.join(SIZES)} |"
    yield f"|---|{'---:|' * len(SIZES)}"
    for arm in (*ARMS, *RIVALS):
        found = [_find(rows, size, arm) for size in SIZES]
        if any(found):
            yield f"| {arm} | {' | '.join(map(_difference, found))} |"


def _find(rows: Rows, size: str, arm: str) -> dict[str, Any] | None:
    same = (row for row in rows if (row["size"], row["arm"], row["equal"]) == (size, arm, "FLOPs"))
    return next(same, None)


def _difference(row: dict[str, Any] | None) -> str:
    """Return a difference, or the bits per byte of the first arm, and the seeds. With few seeds, t
    says nothing."""
    if row is None:
        return "–"
    if "difference" not in row:
        return f"{row['bits_per_byte']:.3f} ({row['seeds']})"
    t = f", t = {row['t']:.1f}" if "real" in row else ""
    return f"{row['difference']:+.3f} ({row['seeds']}{t})".replace("-", "−")


def table_of_results() -> list[str]:
    """Return the lines of the table."""
    return list(table(json.loads(RESULTS.read_text())["summary"]))


if __name__ == "__main__":
    print("\n".join(table_of_results()))
