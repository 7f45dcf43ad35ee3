"""Tables, notes and JSON of what a step takes on several cards (on_cards.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipeline.console.formats import measured
from pipeline.rent.plan.on_cards import CardsRow, OnCards, link_in_words

# So many types of GPU each have a table with all numbers. More types have a line each.
DETAILED = 2
# How many types have a line, the cheapest first.
LINES = 10


def tables(found: Sequence[OnCards]) -> list[Table]:
    """Return a table for each of a few types of GPU, or one table of many types."""
    if len(found) <= DETAILED:
        return [_one_type(each) for each in found]
    return [_many_types(found)]


def notes(found: Sequence[OnCards]) -> list[str]:
    """Return what the tables assume, and why a job can't use some numbers of cards."""
    if not found:
        return []
    lines = [
        "on several cards: estimated from the links' published speeds, at best. n cards are taken "
        "to cost n times as much as one"
    ]
    if len(found) <= DETAILED:
        links = dict.fromkeys(row.link for each in found for row in each.rows if row.cards > 1)
        lines += [f"{link_in_words(link)}: {link.source}" for link in links]
    elif len(found) > LINES:
        lines.append(f"{len(found) - LINES} more types: --gpu NAME, or --json")
    lines += [f"{each.gpu}: {_exchange(each)}" for each in found if _exchange(each)]
    reasons = dict.fromkeys(row.why_not for each in found for row in each.rows if row.why_not)
    return [*lines, *(reason for reason in reasons if reason is not None)]


def _exchange(found: OnCards) -> str:
    """Return what the cards exchange if they divide the weights, in words; empty if they don't."""
    rows = [row for row in found.rows if row.sharded and row.step is not None]
    words = [
        f"{row.cards} cards {row.step.exchanging:.2f} s of {row.step.seconds:.2f}, "
        f"{(row.peak_bytes or 0) / 2**30:.1f} GiB each"
        for row in rows
        if row.step is not None
    ]
    if not words:
        return ""
    return (
        "cards that divide the weights (sharded) gather them and give away gradients in each step, "
        f"mostly while they compute: {'; '.join(words)}"
    )


def as_json(found: OnCards) -> dict[str, Any]:
    """Return all numbers of a type of GPU."""
    return {
        "stage": found.stage,
        "gradient_bytes": found.gradient_bytes,
        "rows": [_row_as_json(row) for row in found.rows],
    }


def _row_as_json(row: CardsRow) -> dict[str, Any]:
    step = row.step
    return {
        "cards": row.cards,
        "asked": row.asked,
        "why_not": row.why_not,
        "link": dataclasses.asdict(row.link),
        "step_seconds": None if step is None else step.seconds,
        "tokens_per_second": None if step is None else step.tokens_per_second,
        "relative_cost_of_a_token": row.cost,
        "moment_bytes": row.moment_bytes,
        "sharded": row.sharded,
        "peak_bytes": row.peak_bytes,
        "parts": None if step is None else dataclasses.asdict(step),
    }


def _by_cards(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("cards", style="bold", no_wrap=True)
    return table


def _one_type(found: OnCards) -> Table:
    table = _by_cards(f"a step of {found.stage} on several {found.gpu}, estimated")
    parts = ("compute", "sum", "Muon", "gather") if found.one.muon else ("compute", "sum", "gather")
    for name in ("s/step", "tokens/s", "$/token", *parts, "moments"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        step, cards = row.step, f"{row.cards}{' (asked)' if row.asked else ''}"
        cards += ", sharded" if row.sharded else ""
        if step is None or row.cost is None:
            table.add_row(cards, "no")
            continue
        muon = (step.muon,) if found.one.muon else ()
        seconds = (step.computing, step.summing, *muon, step.gathering)
        table.add_row(
            cards,
            f"{step.seconds:.3f}",
            f"{step.tokens_per_second:,.0f}",
            f"×{row.cost:.2f}",
            *(f"{each:.3f}" for each in seconds),
            f"{measured(row.moment_bytes / 2**30, digits=2)} GiB",
        )
    return table


def _many_types(found: Sequence[OnCards]) -> Table:
    table = _by_cards(f"seconds of a step of {found[0].stage} (× $/token), estimated")
    table.add_column("GB/s", justify="right", no_wrap=True)
    counts = [row.cards for row in found[0].rows]
    asked = {row.cards for each in found for row in each.rows if row.asked}
    for cards in counts:
        mark = " (asked)" if cards in asked else ""
        table.add_column(f"{cards}{mark}", justify="right", no_wrap=True)
    for each in found[:LINES]:
        table.add_row(
            each.gpu, f"{each.rows[1].link.gb_per_second:g}", *(_cell(row) for row in each.rows)
        )
    return table


def _cell(row: CardsRow) -> str:
    if row.step is None or row.cost is None:
        return "no"
    cost = "" if row.cards == 1 else f" ×{row.cost:.2f}"
    return f"{row.step.seconds:.3f}{cost}{', sharded' if row.sharded else ''}"
