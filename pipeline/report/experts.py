"""The report's section on experts: how evenly each layer's router spreads the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.report.history import Row, RunHistory
from pipeline.report.html import section, table
from pipeline.report.plots import TITLES

# The numbers of a layer are the mean of this many steps, the last ones of a training stage.
LAST_STEPS = 50


def experts_section(history: RunHistory) -> str:
    """Return a table with each layer's load and entropy; empty for a model without experts."""
    experts = history.job.model_config_resolved().experts
    measured: dict[str, Sequence[Row]] = {}
    for stage in history.job.train_stages:
        routed = [row for row in history.steps(stage) if "expert_load" in row]
        if routed:
            measured[stage] = routed[-LAST_STEPS:]
    if experts is None or not measured:
        return ""
    header, columns = ["layer"], []
    for stage, rows in measured.items():
        header += [f"{TITLES[stage].lower()}: load", "entropy"]
        columns += [_means(rows, "expert_load", 2), _means(rows, "router_entropy", 3)]
    layers = [[f"blocks.{layer}", *cells] for layer, cells in enumerate(zip(*columns))]
    note = (
        f"Means of the last {LAST_STEPS} steps. Load: the tokens of the busiest expert, as a "
        "multiple of an expert's mean. 1.0 is even, and "
        f"{experts.n / experts.top_k:.2g} is the worst: some expert gets every token. Entropy of "
        f"the router: {math.log(experts.n):.3f} nats if it prefers no expert, 0 if it is always "
        "sure."
    )
    return section("Experts", table(header, layers) + f'<p class="faint small">{note}</p>')


def _means(rows: Sequence[Row], key: str, digits: int) -> list[str]:
    """Return each layer's mean over the rows."""
    layers = zip(*(row.get(key, ()) for row in rows))
    return [_mean([value for value in layer if value is not None], digits) for layer in layers]


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{sum(values) / len(values):.{digits}f}" if values else "–"
