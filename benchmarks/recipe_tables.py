"""The tables of docs/recipes.md, from benchmarks/results/recipes.json.

uv run python -m benchmarks.recipe_tables
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.recipe_arms import ARMS, RIVALS, SIZES
from benchmarks.recipes import RESULTS

Rows = list[dict[str, Any]]


def main_table(rows: Rows, arms: list[str]) -> Iterator[str]:
    """Yield a table of arms by size: bits per byte at equal FLOPs less those of the first arm."""
    yield f"| | {' | '.join(SIZES)} |"
    yield f"|---|{'---:|' * len(SIZES)}"
    for arm in arms:
        cells = [_difference(_find(rows, size, arm)) for size in SIZES]
        yield f"| {arm} | {' | '.join(cells)} |"


def _find(rows: Rows, size: str, arm: str) -> dict[str, Any] | None:
    same = (row for row in rows if (row["size"], row["arm"], row["equal"]) == (size, arm, "FLOPs"))
    return next(same, None)


def _difference(row: dict[str, Any] | None) -> str:
    """Return a difference with its t, or the bits per byte of the first arm, and the seeds."""
    if row is None:
        return "–"
    if "difference" not in row:
        return f"{row['bits_per_byte']:.3f} ({row['seeds']})"
    words = f"{row['difference']:+.3f}".replace("-", "−")
    if "t" not in row:
        return f"{words} ({row['seeds']})"
    t = f"{row['t']:.1f}".replace("-", "−")
    return f"{words} (t = {t}, {row['seeds']})"


def tables() -> list[str]:
    """Return the lines of all tables."""
    rows = json.loads(RESULTS.read_text())["summary"]
    return list(main_table(rows, [*ARMS, *RIVALS]))


if __name__ == "__main__":
    print("\n".join(tables()))
