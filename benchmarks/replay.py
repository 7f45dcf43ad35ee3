"""Replay a run on recorded spot markets, without a deadline and with.

    uv run python -m benchmarks.replay TRACE.json …

The job is jobs/pion-small.yaml at 4.3 s per step, the speed of the published recipe on an A40: 27.8
hours of training. Assumed: the first step comes 60 s after paying starts; a checkpoint of 1.24 GB
is copied in 0.31 s, then written at 250 MB/s and uploaded at 100 MB/s. An hour costs $0.20 on spot
and $0.40 on demand. The margin is 30 minutes. A deadline is a multiple of the training time. Each
trace is replayed from a thousand evenly spaced starts, which takes a minute for three traces.

Greedy waits for spot as long as it can, and then stays on demand. The bound knows all spells of
spot in advance, uses the longest first, loses nothing and saves nothing. It ignores whether its
choice fits into the time, so no policy can reach it.

The committed results are of three files of github.com/skypilot-org/spot-traces:
preemption/1-node/aws-04-22-2023/{us-east-1f,us-west-2b}_v100_1.json and
availability/1-node/aws-02-15-2023/us-east-2a_v100_1.json. Says whether each target is met, and
writes benchmarks/results/replay.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.spot_market import Costs, Course, Paid, Rule, Stage, TimedRun, Trace, read_trace
from benchmarks.spot_market import replay as replayed
from pipeline.job.file import load_job

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "replay.json"
STEP_SECONDS, MARGIN, STARTS = 4.3, 1800.0, 1000
COSTS = Costs(boot=60.0, stall=0.31, write=17.3)
PRICES = (0.2, 0.4)
# The least share of the paid time that should be kept work, without a deadline.
LEAST_KEPT = 0.97
# The most that the policy should cost, of what on demand alone costs, in the mean of all traces.
TARGETS = {"1.1x": 0.66, "1.25x": 0.625, "1.5x": 0.59, "2x": 0.55, "3x": 0.525}
# The most that it should cost on any trace, of the bound.
MOST_OVER_BOUND = 1.06


def main() -> None:
    """Replay every trace, print the results, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", metavar="TRACE.json", nargs="+", type=Path)
    run, found = pion_small(), {}
    for path in parser.parse_args().traces:
        trace = read_trace(path)
        found[trace.name] = results(run, trace)
        print(json.dumps({trace.name: found[trace.name]}, indent=1), flush=True)
    RESULT.write_text(json.dumps({"traces": found, "mean": means(found)}, indent=1) + "\n")
    print("\n".join(verdicts(found)))


def pion_small() -> TimedRun:
    """Return the run of jobs/pion-small.yaml, whose steps take as long as their tokens say."""
    job = load_job(ROOT / "jobs" / "pion-small.yaml", [])
    tokens = {
        stage: job.section(stage).global_batch * job.seq_len(stage) for stage in job.train_stages
    }
    second = STEP_SECONDS / tokens[job.train_stages[0]]
    stages = [Stage(job.section(s).total_steps, tokens[s] * second) for s in job.train_stages]
    return TimedRun(stages, COSTS, 3600 * job.checkpoint.preemption_hours)


def results(run: TimedRun, trace: Trace, most_starts: int = STARTS) -> dict[str, Any]:
    """Return the share of kept work without a deadline, and what each way costs with one."""
    every = math.ceil(len(trace.available) / most_starts)
    starts = [tick * trace.gap_seconds for tick in range(0, len(trace.available), every)]
    spot = [replayed(run, trace, start, Rule(math.inf, MARGIN)) for start in starts]
    kept = run.work_seconds / fmean(course.paid.spot for course in spot)
    deadlines = {}
    for given in TARGETS:
        deadline = float(given.removesuffix("x")) * run.work_seconds
        found = with_deadline(run, trace, starts, deadline)
        deadlines[given] = {**found, "spot_alone_late": late(spot, deadline)}
    return {"starts": len(starts), "kept": kept, "deadlines": deadlines}


def with_deadline(
    run: TimedRun, trace: Trace, starts: Sequence[float], deadline: float
) -> dict[str, float]:
    """Return how the policy, greedy and the bound do, as shares of the dollars on demand."""
    pion, greedy = (
        [replayed(run, trace, start, Rule(deadline, MARGIN, greedy)) for start in starts]
        for greedy in (False, True)
    )
    seconds = run.costs.boot + run.seconds_left((0, 0), run.assumed_life)
    on_demand = Paid(0.0, seconds).dollars(*PRICES)
    spells = (trace.spells(start, start + deadline) for start in starts)
    bound = fmean(least_cost(run, each).dollars(*PRICES) for each in spells)
    cost, greedy_cost = (fmean(c.paid.dollars(*PRICES) for c in way) for way in (pion, greedy))
    return {
        "late": late(pion, deadline),
        "of_on_demand": cost / on_demand,
        "of_bound": cost / bound,
        "greedy_of_on_demand": greedy_cost / on_demand,
        "returns": fmean(course.returns for course in pion),
    }


def late(courses: Sequence[Course], deadline: float) -> float:
    """Return the share of replays that missed the deadline."""
    return fmean(course.elapsed > deadline for course in courses)


def least_cost(run: TimedRun, spells: Sequence[float]) -> Paid:
    """Return what the cheapest choice pays for, given the seconds of every spell of spot.

    Nothing is lost, no save takes time, and whatever spot does not do fits on one machine on
    demand. The longest spells are used first, as each costs one boot. No run can be cheaper, and
    some of these choices can't be made in time, so this is a lower bound.
    """
    work, boot = run.work_seconds, run.costs.boot
    choices = [Paid(0.0, work + boot)]
    done = used = 0.0
    for spell in sorted(spells, reverse=True):
        gained = min(spell - boot, work - done)
        if gained <= 0:
            break
        done += gained
        used += gained + boot
        left = work - done
        choices.append(Paid(used, left + boot if left > 0 else 0.0))
    return min(choices, key=lambda choice: choice.dollars(*PRICES))


def means(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return each quantity of each deadline, in the mean of all traces."""
    rows = {given: [trace["deadlines"][given] for trace in found.values()] for given in TARGETS}
    return {
        g: {key: round(fmean(r[key] for r in of), 4) for key in of[0]} for g, of in rows.items()
    }


def verdicts(found: dict[str, Any]) -> list[str]:
    """Return a line for each target: what was to be reached, and what was."""
    kept = min(trace["kept"] for trace in found.values())
    lines = [f"kept work {'met' if kept >= LEAST_KEPT else 'MISSED'}: {kept:.4f} of the paid time"]
    for given, mean in means(found).items():
        worst = max(trace["deadlines"][given]["of_bound"] for trace in found.values())
        cost = mean["of_on_demand"]
        met = mean["late"] == 0 and cost <= TARGETS[given] and worst <= MOST_OVER_BOUND
        lines.append(
            f"{given:>6} {'met' if met else 'MISSED':<7} late {mean['late']:.4%}; {cost:.4f} of on "
            f"demand (at most {TARGETS[given]}); at most {worst:.4f} of the bound"
        )
    return lines


if __name__ == "__main__":
    main()
