"""Measure how long the page of runs takes to draw 100,000 points of the loss, in Chromium.

    uv run python -m benchmarks.page_drawing

Five runs of 20,000 points each are drawn, measured and smoothed, on a screen of 1,280 pixels. In
turn with that, the same points are drawn as if a look had just brought them, and with every point
in the paths, which is what the page would take without the reduction to columns of pixels. A draw
ends when the browser has made the next frame. Writes benchmarks/results/page_drawing.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.startup import ROOT
from pipeline.report.report_file import write_report
from tests.pipeline.report.test_page_data import history
from tests.support.browser import chromium

RESULT = ROOT / "benchmarks" / "results" / "page_drawing.json"
RUNS, POINTS, REPEATS = 5, 20_000, 25
WAYS = ("ours", "ours, new points", "every point")

# Show curves that fall with noise, of every run.
LEARN = """([runs, points]) => {
  const noise = (i, n) => Math.abs(Math.sin(i * 12.9898 + n * 78.233) * 43758.5453) % 1;
  const value = (i, n) => 2.4 + 5 / (1 + i / 500) + 0.1 * noise(i, n);
  const loss = (n) => Array.from({ length: points }, (_, i) => [i + 1, value(i, n), i]);
  const run = frozen.runs[0];
  const made = Array.from({ length: runs }, (_, n) => ({
    ...run, name: `run ${n}`, metrics: { pretrain: ["loss"] },
    curves: { pretrain: { loss: loss(n) } },
  }));
  learn({ runs: made, settings: null });
  view.charts = ["loss"];
  show();
  const everyPoint = (xs, ys, first, end, x, y) => {
    const parts = [];
    const add = (pixel) => parts.push(Math.round(10 * pixel) / 10);
    for (let i = first; i < end; i++) [x(xs[i]), y(ys[i])].forEach(add);
    return parts.length ? `M${parts.join(" ")}` : "";
  };
  window.ways = { ours: pathOf, "ours, new points": pathOf, "every point": everyPoint };
}"""
# The milliseconds of a change to what is drawn: the script, and until the next frame is made.
DRAW = """(way) => new Promise((done) => requestAnimationFrame(() => {
  pathOf = window.ways[way];
  if (way.includes("new")) columnsOf.known = new WeakMap();
  const began = performance.now();
  view.smoothing = view.smoothing === 60 ? 61 : 60;
  showCharts();
  charts.get("loss").plot.getBoundingClientRect();
  const script = performance.now() - began;
  requestAnimationFrame(() => setTimeout(() => done([script, performance.now() - began]), 0));
}))"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        report = Path(folder) / "report.html"
        write_report(report, history())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(report.as_uri())
        page.evaluate(LEARN, [RUNS, POINTS])
        series: list[int] = page.evaluate(
            "charts.get('loss').series.filter((one) => one.label).map((one) => one.x.length)"
        )
        times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(REPEATS):
            for way, measured in times.items():
                measured.append(page.evaluate(DRAW, way))
        result: dict[str, Any] = {
            "cores": os.cpu_count(),
            "chromium": browser.version,
            "points": sum(series),
        }
        for way, measured in times.items():
            script, frame = zip(*measured[3:])  # the first ones compile
            result[way] = {
                "script_ms": round(statistics.median(script), 1),
                "frame_ms": round(statistics.median(frame), 1),
                "slowest_frame_ms": round(max(frame), 1),
            }
        print(json.dumps(result, indent=1))
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
