"""Draw a replay as PNG: when the run is done for each start, and where paid time was lost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.rent.replay.simulate import CAUSES, Outcome
from pipeline.report.plots import list_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.rent.replay.summary import Summary

INK, GRID, AWAY, LINE = "#57606a", "#d8dee4", "#eceff2", "#3b82c4"
COLOURS = dict(zip(CAUSES, ("#e8853a", "#d9b23c", "#b65d9b", "#6d7fd1")))


def replay_plot(summaries: Sequence[Summary], on_demand: Outcome) -> bytes:
    """Draw one row for each trace. Left: hours until done by start, shaded where the trace has no
    machine. Right: badput by cause, in percent of the paid time, next to the badput on demand."""
    list_fonts()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Figure = Figure(figsize=(11, 2.9 * len(summaries)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(summaries), 2, squeeze=False, width_ratios=(3, 1))
    for (left, right), summary in zip(rows, summaries):
        _hours(left, summary, on_demand)
        _badput(right, summary, on_demand)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _hours(axes: Axes, summary: Summary, on_demand: Outcome) -> None:
    trace = summary.trace
    days = trace.gap_seconds / 86_400
    done = {t: o.elapsed / 3600 for t, o in summary.outcomes.items() if o.stopped is None}
    ticks = [days * tick for tick in range(len(trace.available) + 1)]
    axes.fill_between(
        ticks,
        0,
        1,
        where=[*(not there for there in trace.available), False],
        step="post",
        transform=axes.get_xaxis_transform(),
        color=AWAY,
        linewidth=0,
        label="no machine",
    )
    axes.plot(
        [days * t for t in done], list(done.values()), color=LINE, linewidth=1.2, label="spot"
    )
    axes.axhline(on_demand.elapsed / 3600, color=INK, linewidth=0.9, linestyle="--")
    axes.annotate(
        "on demand",
        (1, on_demand.elapsed / 3600),
        xycoords=("axes fraction", "data"),
        xytext=(-3, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=INK,
    )
    axes.set_xlim(0, days * len(trace.available))
    axes.set_ylim(0, 1.08 * max([*done.values(), on_demand.elapsed / 3600]))
    axes.set_title(trace.name, loc="left", fontsize=10)
    axes.set_xlabel("start, days into the trace", color=INK, fontsize=9)
    axes.set_ylabel("hours until done", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    _dress(axes)


def _badput(axes: Axes, summary: Summary, on_demand: Outcome) -> None:
    paid = on_demand.paid or 1.0
    bars = {"spot": summary.badput, "on demand": {c: on_demand.lost[c] / paid for c in CAUSES}}
    for place, shares in enumerate(bars.values()):
        reached = 0.0
        for cause in CAUSES:
            percent = 100 * shares[cause]
            label = cause if place == 0 else None
            axes.bar(place, percent, bottom=reached, width=0.6, color=COLOURS[cause], label=label)
            reached += percent
        axes.annotate(f"{reached:.1f} %", (place, reached), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylim(0, 1.25 * 100 * max(sum(shares.values()) for shares in bars.values()))
    axes.set_title("paid, but not kept work", loc="left", fontsize=10)
    axes.set_ylabel("% of paid time", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    _dress(axes)


def _dress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0, labelsize=8)
