"""The curves of a run: what each kept step measured, thinned, and which steps were rewound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.thin import Point, thin
from pipeline.state.metrics import kept_rows
from pipeline.state.records import Head

NAMES = ("loss", "held_out_loss", "lr", "tokens_per_second")
# Digits that a screen can show.
DIGITS = 6

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CurveKey:
    """Which curve: a training stage, and one of NAMES."""

    stage: str
    name: str


@dataclass(frozen=True)
class Rewound:
    """Steps `first` to `last` of a stage no longer count: the attempt `epoch` repeats them."""

    stage: str
    first: int
    last: int
    epoch: int


def curves_of(stage: str, rows: Sequence[Row]) -> dict[CurveKey, list[Point]]:
    """Return the thinned curves of a stage that have points. `rows` are sorted by step."""
    found = {}
    for name in NAMES:
        points = [
            (row["step"], float(value))
            for row in rows
            if (value := row.get(name)) is not None and math.isfinite(value)
        ]
        if points:
            kept = thin(points)
            found[CurveKey(stage, name)] = [(step, float(f"{v:.{DIGITS}g}")) for step, v in kept]
    return found


def keep(metrics: Mapping[str, Iterable[Row]], head: Head) -> dict[str, list[Row]]:
    """Return each stage's rows that lead to its present state, by step."""
    return {stage: list(kept_rows(rows, head, stage)) for stage, rows in metrics.items()}  # type: ignore[arg-type]


def rewound(
    before: Mapping[str, Sequence[Row]], now: Mapping[str, Sequence[Row]], head: Head
) -> list[Rewound]:
    """Return which steps of each stage counted `before` and no longer do."""
    found = []
    for stage, rows in before.items():
        present = {id(row) for row in now.get(stage, ())}
        lost = [row["step"] for row in rows if id(row) not in present]
        if lost:
            found.append(Rewound(stage, min(lost), max(lost), head.epoch))
    return found


def attempts(rows: Sequence[Row]) -> list[dict[str, int]]:
    """Return where each attempt's kept rows begin: its first step and its epoch."""
    starts = []
    epoch = None
    for row in rows:
        if row["epoch"] != epoch:
            epoch = row["epoch"]
            starts.append({"step": row["step"], "epoch": epoch})
    return starts
