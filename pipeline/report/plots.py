"""The plot of a run's losses for its model card, and the fonts of plots."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.machine.child_process import without_secrets
from pipeline.report.history import STAGE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Rows = Sequence[Mapping[str, Any]]

INK, TITLE, GRID, PAPER = "#57606a", "#1f2328", "#d8dee4", "#ffffff"
TRAIN, HELD_OUT = "#3b82c4", "#e8853a"
# Larger losses and steps have no room at an axis, and don't happen.
LARGEST_DRAWN = 1e15
SMOOTHED_PARTS = 25  # the mean covers 1/25 of the curve: smooth, but spikes stay visible


def loss_plot(metrics: Mapping[str, Rows]) -> bytes:
    """Plot training and held-out loss over optimizer steps, as PNG, one panel per training stage.

    `metrics` maps a stage to its rows in step order: `step`, `epoch`, and any of `loss` and
    `held_out_loss` (nats per token).
    """
    list_fonts()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = [stage for stage in STAGE_NAMES if metrics.get(stage)]
    figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    if not stages:
        figure.text(0.5, 0.5, "nothing measured yet", ha="center", color=INK)
    for i, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), i + 1)
        rewards = stage == "reinforce"
        title = STAGE_NAMES[stage].capitalize() + ": mean reward" * rewards
        _draw_losses(axes, metrics[stage], "reward" if rewards else "loss")
        axes.set_title(title, loc="left", fontsize=11, color=TITLE)
        axes.set_xlabel("optimizer step", color=INK)
        if i == 0:
            axes.set_ylabel("loss (nats per token)", color=INK)
        _dress(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_losses(axes: Axes, rows: Rows, key: str) -> None:
    steps, losses = _series(rows, key)
    smooth = running_mean(losses, max(1, len(losses) // SMOOTHED_PARTS))
    axes.plot(steps, losses, color=TRAIN, linewidth=0.7, alpha=0.3)
    axes.plot(steps, smooth, color=TRAIN, linewidth=1.6, label="training")
    held_steps, held = _series(rows, f"held_out_{key}")
    if held:
        axes.plot(held_steps, held, color=HELD_OUT, marker="o", ms=4, lw=1.2, label="held out")
    # A faint vertical line shows where another epoch (a restart, another machine) took over.
    for before, row in itertools.pairwise([row for row in rows if row.get("epoch") is not None]):
        if row["epoch"] != before["epoch"]:
            axes.axvline(row["step"], color="#8b949e", linewidth=0.8, linestyle=(0, (2, 3)))
    # The first steps fall from ln(vocabulary). With them, all later steps would look flat.
    values = [*smooth[len(smooth) // 50 :], *held]
    if values:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 0.1
        axes.set_ylim(low - room, high + room)
    axes.legend(frameon=False, loc="best", labelcolor=INK)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and up to `window // 2` neighbors on either side.

    A mean over past values only would lag behind a falling curve.
    """
    sums = list(itertools.accumulate(values, initial=0.0))
    half, count = window // 2, len(values)
    ranges = [(max(0, i - half), min(count, i + half + 1)) for i in range(count)]
    return [(sums[end] - sums[first]) / (end - first) for first, end in ranges]


def _series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of the rows with a `key` that can be drawn, in step order."""
    points = sorted(
        (int(row["step"]), float(row[key]))
        for row in rows
        if row.get(key) is not None and max(abs(row[key]), row["step"]) < LARGEST_DRAWN
    )
    return [step for step, _ in points], [value for _, value in points]


def _dress(axes: Axes) -> None:
    """Style the axes: a light horizontal grid, no box, thousands separators."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor(PAPER)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    if axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))


def list_fonts() -> None:
    """Fill matplotlib's list of fonts, unless there is one.

    Call this before anything is drawn: otherwise matplotlib runs `fc-list` from this process, with
    every key of the environment.
    """
    import matplotlib

    if any(Path(matplotlib.get_cachedir()).glob("fontlist-*.json")):
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # then matplotlib lists them
        subprocess.run(
            [sys.executable, "-P", "-c", "import matplotlib.font_manager"],
            env=without_secrets(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
