"""The report's section on recipes: how sure each layer is, and what is used of each bank."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pion.primitives import WAYS
from pipeline.report.history import Row, RunHistory
from pipeline.report.html import section, table
from pipeline.report.plots import TITLES


def recipes_section(history: RunHistory) -> str:
    """Return tables of layers and banks after each stage; empty for a model without primitives."""
    config = history.job.model_config_resolved()
    primitives, experts = config.primitives, config.experts
    last: dict[str, Row] = {}
    for stage in history.job.train_stages:
        rows: Sequence[Row] = [row for row in history.steps(stage) if row.get("primitives_used")]
        if rows:
            last[stage] = rows[-1]
    if primitives is None or not last:
        return ""
    titles = [TITLES[stage].lower() for stage in last]
    entropies = zip(*(row.get("recipe_entropy", ()) for row in last.values()))
    layers = [
        [_row_name(row, 0 if experts is None else experts.n), *map(_number, values)]
        for row, values in enumerate(entropies)
    ]
    used = zip(*(row["primitives_used"] for row in last.values()))
    names = [f"bands.{band}.{way}" for band in range(len(primitives.bands)) for way in WAYS]
    banks = [
        [name, *(cell for value in values for cell in _used(value, primitives.n))]
        for name, values in zip(names, used)
    ]
    header = ["bank", *(cell for title in titles for cell in (f"{title}: used", "dead"))]
    note = (
        "After the last step. Used: the primitives of a bank that some layer of its band chooses; "
        "dead: those that no layer chooses. Entropy of a layer's two recipes: "
        f"{math.log(primitives.n):.3f} nats if all {primitives.n} primitives weigh the same, 0 if "
        "one has all the weight."
    )
    return section(
        "Recipes",
        table(header, banks)
        + table(["layer", *(f"{title}: entropy" for title in titles)], layers)
        + f'<p class="faint small">{note}</p>',
    )


def _row_name(row: int, experts: int) -> str:
    """Return what a row of `Decoder.recipes` belongs to: a layer, or one of its experts."""
    return f"blocks.{row // experts}.recipes.{row % experts}" if experts else f"blocks.{row}"


def _used(value: float | None, n: int) -> tuple[str, str]:
    return ("–", "–") if value is None else (f"{round(value)}", f"{n - round(value)}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
