"""Replay deadlines on recorded spot markets, from every start of each trace.

    uv run python -m benchmarks.deadline TRACE.json …

The job is jobs/pion-small.yaml at 4.3 s per step, the speed of the published recipe on an A40: 27.8
hours of training. The first step comes 60 s after paying starts. Spot costs $0.20 per hour, on
demand $0.40. The margin is 30 minutes. A deadline is a multiple of the training time.

The bound knows all spells of spot in advance, uses the longest first, loses nothing and saves
nothing. It ignores whether its choice fits into the time, so no policy can reach it. Says whether
each target is met; a missed target does not fail the command. Writes
benchmarks/results/deadline.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.job.file import load_job
from pipeline.rent.replay.command import timed_run
from pipeline.rent.replay.deadline import MARGIN_SECONDS, Comparison, compare, deadline_of
from pipeline.rent.replay.numbers import job_numbers
from pipeline.rent.replay.options import Given
from pipeline.rent.replay.simulate import Outcome, replay_on_demand, sweep
from pipeline.rent.replay.summary import Summary, summarise
from pipeline.rent.replay.traces import read_trace

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "deadline.json"
GIVEN = Given(step_seconds=4.3, price=0.2, on_demand_price=0.4)
# The most that the policy should cost, of what on demand alone costs, in the mean of all traces.
TARGETS = {"1.1x": 0.66, "1.25x": 0.625, "1.5x": 0.59, "2x": 0.55, "3x": 0.525}
# The most that it should cost on any trace, of the bound.
MOST_OVER_BOUND = 1.06


def main() -> None:
    """Replay every deadline on every trace, print the results, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", metavar="TRACE.json", nargs="+")
    paths = parser.parse_args().traces
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:  # a store without past speeds
        job = load_job(ROOT / "jobs" / "pion-small.yaml", [f"store={empty}"])
        numbers = job_numbers(job, GIVEN)
        traces = [read_trace(path) for path in paths]
        run = timed_run(job, numbers)
        summaries = [summarise(trace, sweep(run, trace), numbers.spot) for trace in traces]
        alone = replay_on_demand(run)
        found: dict[str, list[dict[str, Any]]] = {}
        for given in TARGETS:
            # Starts share what they trained, as long as they have the same deadline.
            run = timed_run(job, numbers)
            on_time = deadline_of(given, run, (numbers.spot, numbers.on_demand))
            found[given] = [
                row(compare(on_time, summary, alone, len(summary.trace.available)))
                for summary in summaries
            ]
            print(json.dumps({given: found[given]}, indent=1), flush=True)
    keep(paths, alone, summaries, found, time.perf_counter() - began)
    print("\n".join(verdicts(found)))


def row(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain JSON, with the two ratios that have targets."""
    said = comparison.to_dict()
    dollars, alone = (comparison.ways[way].dollars for way in ("pion", "on demand alone"))
    assert dollars is not None
    assert alone is not None
    assert comparison.bound is not None
    return {
        **said,
        "of_on_demand": round(dollars / alone, 4),
        "greedy_of_on_demand": round((comparison.ways["greedy"].dollars or 0.0) / alone, 4),
        "of_bound": round(dollars / comparison.bound, 4),
    }


def keep(
    paths: list[str],
    alone: Outcome,
    summaries: list[Summary],
    found: dict[str, list[dict[str, Any]]],
    seconds: float,
) -> None:
    """Write the results."""
    names = " ".join(Path(path).name for path in paths)
    result = {
        "command": f"uv run python -m benchmarks.deadline {names}",
        "margin_seconds": MARGIN_SECONDS,
        "on_demand_hours": alone.elapsed / 3600,
        "starts": {summary.trace.name: len(summary.outcomes) for summary in summaries},
        "mean_of_on_demand": {given: mean(rows) for given, rows in found.items()},
        "deadlines": found,
        "seconds": round(seconds),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def mean(rows: list[dict[str, Any]]) -> float:
    """Return what the policy costs of on demand alone, in the mean of all traces."""
    return round(fmean(row["of_on_demand"] for row in rows), 4)


def verdicts(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a line for each deadline: what was to be reached, and what was."""
    lines = []
    for given, rows in found.items():
        late = fmean(row["ways"]["pion"]["late"] for row in rows)
        worst = max(row["of_bound"] for row in rows)
        met = late == 0 and mean(rows) <= TARGETS[given] and worst <= MOST_OVER_BOUND
        lines.append(
            f"{given:>6} {'met' if met else 'MISSED':<7} late {late:.4%}; {mean(rows):.4f} of on "
            f"demand (at most {TARGETS[given]}); at most {worst:.4f} of the bound "
            f"(at most {MOST_OVER_BOUND})"
        )
    return lines


if __name__ == "__main__":
    main()
