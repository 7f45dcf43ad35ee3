"""The report's section on gates: how well each layer's gate knows which tokens it can skip."""

from __future__ import annotations

from pipeline.report.history import RunHistory
from pipeline.report.html import section, table
from pipeline.report.plots import TITLES


def gates_section(history: RunHistory) -> str:
    """Return a table of each gate's loss, first and last; empty for a model without gates."""
    header, columns = ["layer"], []
    for stage in history.job.train_stages:
        rows = [losses for row in history.steps(stage) if (losses := row.get("gate_loss"))]
        if rows:
            header += [f"{TITLES[stage].lower()}: first loss", "last"]
            columns += [rows[0], rows[-1]]
    if not columns:
        return ""
    layers = [
        [f"blocks.{layer}", *("–" if value is None else f"{value:.3f}" for value in values)]
        for layer, values in enumerate(zip(*columns))
    ]
    note = "Mean binary cross-entropy in nats of a gate's confidence in one step."
    return section("Gates", table(header, layers) + f'<p class="faint small">{note}</p>')
