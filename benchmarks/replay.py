"""Measure how long replaying a trace from every start takes, and the share of useful paid time.

    uv run python -m benchmarks.replay TRACE.json …

The job is jobs/pion-small.yaml at 4.3 s per step, the speed of the published recipe on an A40. The
first step comes 60 s after paying starts, and a checkpoint of 1.24 GB is uploaded at 100 MB/s.
Fails if a trace takes 5 s or more, or if less than 97 % of the paid time is kept work. Writes
benchmarks/results/replay.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.job.file import load_job
from pipeline.rent.replay.command import timed_run
from pipeline.rent.replay.numbers import job_numbers
from pipeline.rent.replay.options import Given
from pipeline.rent.replay.simulate import sweep
from pipeline.rent.replay.summary import summarise
from pipeline.rent.replay.traces import read_trace

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "replay.json"
GIVEN = Given(step_seconds=4.3, price=0.2, on_demand_price=0.4)
MOST_SECONDS, LEAST_KEPT = 5.0, 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", metavar="TRACE.json", nargs="+")
    paths = parser.parse_args().traces
    traces: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as empty:  # a store without past speeds
        job = load_job(ROOT / "jobs" / "pion-small.yaml", [f"store={empty}"])
        numbers = job_numbers(job, GIVEN)
        for path in paths:
            started = time.perf_counter()
            trace = read_trace(path)
            summary = summarise(trace, sweep(timed_run(job, numbers), trace), numbers.spot)
            seconds = time.perf_counter() - started
            traces.append({**summary.to_dict(), "replay_seconds": round(seconds, 2)})
            print(json.dumps(traces[-1], indent=1), flush=True)
    names = " ".join(Path(path).name for path in paths)
    result = {
        "command": f"uv run python -m benchmarks.replay {names}",
        "numbers": dataclasses.asdict(numbers),
        "traces": traces,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for trace_result in traces:
        name = trace_result["trace"]
        if trace_result["replay_seconds"] >= MOST_SECONDS or trace_result["stopped"]:
            raise SystemExit(f"{name} took {trace_result['replay_seconds']} s, or never ended")
        if trace_result["goodput"] < LEAST_KEPT:
            raise SystemExit(f"{name}: only {trace_result['goodput']:.2%} was kept work")


if __name__ == "__main__":
    main()
