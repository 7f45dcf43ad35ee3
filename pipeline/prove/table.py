"""What `pion prove` found, as lines of text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import duration


def verdict_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a table of where the kills landed, and the verdict."""
    kills = result["kills"]
    lines = ["", *_kills_table(kills), ""]
    runs = len(result["rounds"])
    hits = sum(kill["during"] in result["unbroken"]["stages"] for kill in kills)
    lines.append(
        f"{_times(len(kills), 'kill')} in {_times(runs, 'run')}, "
        f"{hits or 'none'} of them in training, "
        f"{duration(result['seconds'])} ({result['seconds_per_kill']:.1f} s per kill)"
    )
    for stage, about in result["unbroken"]["stages"].items():
        lines.append(
            f"{stage:<8}  {about['steps']} steps  weights {about['model_sha256'][:16]}  "
            f"rows {about['rows_sha256'][:16]}"
        )
    if result["equal"]:
        lines.append("EQUAL: every run ended with these weights, trained on these rows.")
    else:
        lines.append(f"DIFFERENT: {result['difference']}")
    return lines


def _kills_table(kills: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how many kills landed where, how many steps were lost, and when training resumed."""
    places: dict[str, list[Mapping[str, Any]]] = {}
    for kill in kills:
        where = f"at {kill['at']}" if kill["at"] else f"random, in {kill['during']}"
        places.setdefault(where, []).append(kill)
    rows = [("landed", "kills", "machine gone", "steps lost", "at most", "next first step")]
    for where, landed in [*sorted(places.items()), ("all", list(kills))]:
        lost = [kill["lost"] for kill in landed]
        back = [s for kill in landed if (s := kill["first_step_seconds"]) is not None]
        rows.append(
            (
                where,
                str(len(landed)),
                str(sum(kill["died"] != "driver" for kill in landed)),
                f"{statistics.mean(lost):.1f}" if lost else "–",
                str(max(lost, default=0)),
                duration(statistics.median(back)) if back else "–",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
