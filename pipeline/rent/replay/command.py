"""`pion replay`: how long a job would take on recorded spot markets, and what it would cost."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.base.read_job import read_job
from pipeline.console.formats import hours, money, show
from pipeline.job import Job
from pipeline.rent.replay.deadline import compare, comparison_lines, deadline_of, heading
from pipeline.rent.replay.numbers import Numbers, job_numbers
from pipeline.rent.replay.options import Given, Number
from pipeline.rent.replay.simulate import Outcome, replay_on_demand, sweep
from pipeline.rent.replay.summary import NAMES, Summary, summarise
from pipeline.rent.replay.timed_training import Overheads, StageWork, TimedRun
from pipeline.rent.replay.traces import read_trace
from pipeline.state.stores import open_store
from pipeline.state.workspace import Workspace


def show_replay(
    job: str,
    overrides: Sequence[str],
    *,
    traces: Sequence[str],
    given: Given | None = None,
    png: str | None = None,
    as_json: bool = False,
) -> None:
    """Print what a job takes on each trace, and write a plot to `png` if it is given.

    Raises BadInput for a job with mistakes, a file that is not a trace, a plot that can't be
    written, a deadline that can't be met, and if nothing says how long a step takes.
    """
    plan = read_job(job, overrides)
    recorded = [read_trace(path) for path in traces]
    if not recorded:
        raise BadInput("name a file with recorded availability: --trace FILE.")
    if png is not None:
        _check_png(png)
    given = given or Given()
    numbers = job_numbers(plan, given)
    run = timed_run(plan, numbers)
    prices = (numbers.spot, numbers.on_demand)
    on_time = deadline_of(given.deadline, run, prices) if given.deadline is not None else None
    on_demand = replay_on_demand(run)
    summaries = [summarise(trace, sweep(run, trace), numbers.spot) for trace in recorded]
    said = _as_json(plan, numbers, on_demand, summaries)
    lines = _lines(plan, numbers, run, on_demand, summaries)
    if on_time is not None:
        compared = [compare(on_time, each, on_demand) for each in summaries]
        lines += ["", heading(on_time)]
        lines += [line for each in compared for line in ("", *comparison_lines(each))]
        said["deadline"] = {
            "seconds": on_time.rule.deadline,
            "margin": on_time.rule.margin,
            "traces": [each.to_dict() for each in compared],
        }
    show(json.dumps(said, indent=1) if as_json else "\n".join(lines))
    if png is not None:
        _write_png(png, summaries, on_demand)


def _check_png(png: str) -> None:
    """Raise BadInput, before minutes of replaying, for a path that can't be written."""
    if not os.path.isdir(Path(png).absolute().parent):
        raise BadInput(f"--png {png}: there is no folder {Path(png).parent}.")
    if os.path.isdir(png):
        raise BadInput(
            f"--png {png} is a folder; name a file in it: --png {Path(png) / 'replay.png'}. "
            "Nothing was replayed."
        )


def _write_png(png: str, summaries: Sequence[Summary], on_demand: Outcome) -> None:
    from pipeline.rent.replay.plot import replay_plot

    picture = replay_plot(summaries, on_demand)
    try:
        Path(png).write_bytes(picture)
    except OSError as error:
        raise BadInput(
            f"--png {png} can't be written: {error.strerror or error}. All numbers are above. For "
            "the plot, run the same command with a different path for --png."
        ) from None


def timed_run(job: Job, numbers: Numbers) -> TimedRun:
    """Return `job`'s training with these numbers, to be replayed."""
    return TimedRun(
        [
            StageWork(s, job.section(s).total_steps, numbers.steps[s].value)
            for s in job.train_stages
        ],
        Overheads(
            boot=numbers.boot.value,
            restore=numbers.restore.value,
            stall=numbers.stall.value,
            write=numbers.write.value,
            warning=numbers.warning.value,
        ),
        job.checkpoint,
        Workspace(open_store(job.store), job.name),
    )


def _dollars(outcome: Outcome, price: Number) -> float:
    return outcome.paid / 3600 * price.value


# ---------------------------------------------------------------- what is printed


def _lines(
    job: Job, numbers: Numbers, run: TimedRun, on_demand: Outcome, summaries: Sequence[Summary]
) -> list[str]:
    steps = sum(work.steps for work in run.work)
    price = numbers.on_demand
    dollars = "" if price is None else f", {money(_dollars(on_demand, price))}"
    return [
        f"{job.name}: {steps:,} steps, {hours(run.work_seconds)} of training; preparing "
        "data, evaluating and publishing are extra",
        *(f"  {name:<17} {value:>9}  {origin}" for name, value, origin in _numbers(numbers)),
        f"  {'saves':<17} {_policy(job)}",
        "",
        f"on demand, never lost: done after {hours(on_demand.elapsed)}"
        f"{dollars}; {_percent(on_demand.goodput)} of the time was kept work",
        *(line for summary in summaries for line in ("", *_trace_lines(summary))),
    ]


def _numbers(numbers: Numbers) -> list[tuple[str, str, str]]:
    """Return each number's name, value and origin, as printed."""
    seconds = {
        **{f"step of {stage}": number for stage, number in numbers.steps.items()},
        "boot": numbers.boot,
        "restore": numbers.restore,
        "stall of a save": numbers.stall,
        "save committed in": numbers.write,
        "warning": numbers.warning,
    }
    unknown = "unknown: set `prices` in the job, or pass --price and --on-demand-price"
    return [
        *((name, f"{number.value:.3g} s", number.origin) for name, number in seconds.items()),
        *(
            (name, f"${price.value:.2f}/h", price.origin) if price else (name, "?", unknown)
            for name, price in (("spot", numbers.spot), ("on demand", numbers.on_demand))
        ),
    ]


def _policy(job: Job) -> str:
    """Return how often the run saves, in words."""
    checkpoint = job.checkpoint
    fixed = [
        f"every {value:g} {unit} (checkpoint.every_{unit})"
        for value, unit in (
            (checkpoint.every_steps, "steps"),
            (checkpoint.every_seconds, "seconds"),
        )
        if value is not None
    ]
    return " and ".join(fixed) or (
        "chosen by the run: at first for a preemption every "
        f"{checkpoint.preemption_hours:g} h (checkpoint.preemption_hours), later from how long its "
        "processes lived"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# What is shown of a trace: its name, the quantity of the summary, and its values in words.
_QUANTITIES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("done after", "elapsed", hours),
    ("paid for", "paid", hours),
    ("waited, unpaid", "waiting", hours),
    ("machines lost", "preemptions", "{:.0f}".format),
    ("kept work", "goodput", _percent),
    ("dollars", "dollars", money),
)


def _trace_lines(summary: Summary) -> list[str]:
    trace = summary.trace
    shown = {
        name: ["never" if value is None else words(value) for value in summary.percentiles[key]]
        for name, key, words in _QUANTITIES
        if key in summary.percentiles
    }
    badput = ", ".join(f"{cause} {_percent(share)}" for cause, share in summary.badput.items())
    return [
        f"{trace.name}: {trace.seconds / 86_400:.1f} days recorded, a machine available "
        f"{_percent(trace.share)} of the time, lost {trace.preemptions} times; "
        f"{len(summary.outcomes):,} starts",
        " " * 18 + "".join(f"{name:>14}" for name in NAMES),
        *(f"  {name:<16}" + "".join(f"{v:>14}" for v in values) for name, values in shown.items()),
        f"  of all paid time, {_percent(summary.goodput)} was kept work; {badput}",
        *(f"  {count:,} starts never finish: {why}" for why, count in summary.stopped.items()),
    ]


def _as_json(
    job: Job, numbers: Numbers, on_demand: Outcome, summaries: Sequence[Summary]
) -> dict[str, Any]:
    return {
        "run": job.name,
        "numbers": dataclasses.asdict(numbers),
        "on_demand": {
            "elapsed": on_demand.elapsed,
            "goodput": on_demand.goodput,
            "dollars": numbers.on_demand and _dollars(on_demand, numbers.on_demand),
        },
        "traces": [summary.to_dict() for summary in summaries],
    }
