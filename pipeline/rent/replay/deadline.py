"""Compare ways to meet a deadline on a recorded market: Pion's policy, greedy, spot alone, on
demand alone, and the best that is possible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from pion.errors import BadInput
from pipeline.console.formats import hours, money
from pipeline.rent.replay.options import Number
from pipeline.rent.replay.simulate import Course, Outcome, Paid, Rule, replay_deadline
from pipeline.rent.replay.summary import Summary
from pipeline.rent.replay.timed_training import START, TimedRun
from pipeline.rent.replay.traces import Trace

# Slack that is kept in hand for what nothing foresaw.
MARGIN_SECONDS = 1800.0
MINUTES = f"{MARGIN_SECONDS / 60:.0f} min"
# Evenly spaced starts of each trace. So many take a few seconds.
STARTS = 1000


@dataclass(frozen=True)
class OnTime:
    """A deadline to replay: the run, and the dollars per hour on spot and on demand (None: one is
    unknown). `given` is the deadline as the user wrote it."""

    run: TimedRun
    given: str
    rule: Rule
    prices: tuple[float, float] | None


@dataclass(frozen=True)
class Way:
    """How one way of renting did on one trace.

    Attributes:
        done: hours until the run was done, at the 50th and 90th percentile; infinite: never.
        dollars: the mean; None if a price is unknown or a start never finishes.
        late: the share of starts that missed the deadline.
        returns: how often a run went from on demand back to spot, in the mean.
    """

    done: tuple[float, float]
    dollars: float | None
    late: float
    returns: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the way as plain JSON."""
        done = [value if math.isfinite(value) else None for value in self.done]
        return {
            "done_hours": dict(zip(("p50", "p90"), done)),
            "dollars": self.dollars,
            "late": self.late,
            "returns": self.returns,
        }


@dataclass(frozen=True)
class Comparison:
    """The ways of one trace, by name. `bound`: the mean of the fewest possible dollars; None if a
    price is unknown. `starts`: how many starts were replayed."""

    trace: Trace
    ways: Mapping[str, Way]
    bound: float | None
    starts: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON."""
        return {
            "trace": self.trace.name,
            "starts": self.starts,
            "bound_dollars": self.bound,
            "ways": {name: way.to_dict() for name, way in self.ways.items()},
        }


def deadline_of(given: str, run: TimedRun, prices: Sequence[Number | None]) -> OnTime:
    """Return the deadline that `given` means: `1.5x`, times the training, or `42h`. `prices` are
    those of an hour on spot and on demand.

    Raises BadInput if `given` is neither, if on demand can't meet it with the margin, and if spot
    is not cheaper than on demand.
    """
    training = run.work_seconds
    seconds = _seconds(given, training)
    least = run.boot + run.seconds_left(START, run.assumed_life) + MARGIN_SECONDS
    if seconds < least:
        # Rounded up, so that what is advised is accepted.
        least_hours, times = math.ceil(least / 360) / 10, math.ceil(100 * least / training) / 100
        raise BadInput(
            f"--deadline {given} is {hours(seconds)}. On demand alone takes "
            f"{hours(least - MARGIN_SECONDS)}, and {MINUTES} are kept as a margin. Pass "
            f"--deadline {least_hours:g}h ({times:g}x) or later. Nothing was replayed."
        )
    rule = Rule(seconds, MARGIN_SECONDS)
    spot, on_demand = prices
    if spot is None or on_demand is None:
        return OnTime(run, given, rule, None)
    if spot.value >= on_demand.value:
        raise BadInput(
            f"spot costs ${spot.value:.2f}/h ({spot.origin}) and on demand "
            f"${on_demand.value:.2f}/h ({on_demand.origin}). Spot is not cheaper, so there is "
            "nothing to wait for: rent on demand. Nothing was replayed."
        )
    return OnTime(run, given, rule, (spot.value, on_demand.value))


def _seconds(given: str, training: float) -> float:
    units = {"x": training, "h": 3600.0}
    try:
        amount = float(given[:-1])
    except ValueError:
        amount = math.nan
    if given[-1:] not in units or not math.isfinite(amount) or amount <= 0:
        raise BadInput(
            f"--deadline {given!r:.40} is no deadline. Pass hours from the start (42h), or a "
            "multiple of the training time (1.5x). Nothing was replayed."
        )
    return amount * units[given[-1]]


def compare(on_time: OnTime, summary: Summary, alone: Outcome, starts: int = STARTS) -> Comparison:
    """Return how every way does from evenly spaced `starts` of a trace. `alone` is the run on
    demand alone, `summary` the run on spot alone."""
    trace, rule = summary.trace, on_time.rule
    every = math.ceil(len(trace.available) / starts)
    begins = [tick * trace.gap_seconds for tick in range(0, len(trace.available), every)]

    def courses(rule: Rule) -> list[Course]:
        return [replay_deadline(on_time.run, trace, begin, rule) for begin in begins]

    greedy = Rule(rule.deadline, rule.margin, greedy=True)
    on_spot = [
        Course(
            outcome.elapsed if outcome.stopped is None else math.inf,
            Paid(outcome.paid, 0.0),
            outcome.preemptions,
            0,
        )
        for outcome in summary.outcomes.values()
    ]
    ways = {
        "pion": _way(on_time, courses(rule)),
        "greedy": _way(on_time, courses(greedy)),
        "spot alone": _way(on_time, on_spot),
        "on demand alone": _way(on_time, [Course(alone.elapsed, Paid(0.0, alone.paid), 0, 0)]),
    }
    return Comparison(trace, ways, _bound(on_time, trace, begins), len(begins))


def _way(on_time: OnTime, courses: Sequence[Course]) -> Way:
    done = np.percentile(
        [course.elapsed / 3600 for course in courses], (50, 90), method="inverted_cdf"
    )
    finished = all(math.isfinite(course.elapsed) for course in courses)
    prices = on_time.prices
    return Way(
        (float(done[0]), float(done[1])),
        fmean(course.paid.dollars(*prices) for course in courses) if prices and finished else None,
        fmean(course.elapsed > on_time.rule.deadline for course in courses),
        fmean(course.returns for course in courses),
    )


def _bound(on_time: OnTime, trace: Trace, begins: Sequence[float]) -> float | None:
    if on_time.prices is None:
        return None
    run, prices = on_time.run, on_time.prices
    spells = (trace.spells(begin, begin + on_time.rule.deadline) for begin in begins)
    return fmean(
        least_cost(run.work_seconds, run.boot, prices, each).dollars(*prices) for each in spells
    )


# ---------------------------------------------------------------- the least that is possible


def least_cost(
    work: float, boot: float, prices: tuple[float, float], spells: Sequence[float]
) -> Paid:
    """Return what the cheapest choice pays for, given the seconds of every spell of spot.

    `work` and the `boot` of a machine are in seconds, `prices` those of an hour on spot and on
    demand.

    Nothing is lost, no save takes time, and whatever spot does not do fits on one machine on
    demand. The longest spells are used first, as each costs one boot. No run can be cheaper, and
    some of these choices can't be made in time, so this is a lower bound.
    """
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
    return min(choices, key=lambda choice: choice.dollars(*prices))


# ---------------------------------------------------------------- what is printed


def heading(on_time: OnTime) -> str:
    """Return the deadline in words."""
    times = f" ({on_time.given} the training)" if on_time.given.endswith("x") else ""
    return (
        f"deadline {on_time.rule.deadline / 3600:,.1f} h after the start{times}, margin "
        f"{MINUTES}: spot while there is time for one more loss, then on demand"
    )


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the table of a trace, for people."""
    alone = comparison.ways["on demand alone"].dollars

    def of_alone(dollars: float | None) -> str:
        return "?" if dollars is None or not alone else f"{100 * dollars / alone:.1f} %"

    rows: dict[str, Sequence[str]] = {
        "": ("done p50", "done p90", "dollars", "of on demand", "late")
    }
    rows |= {
        name: (
            *(hours(3600 * value) for value in way.done),
            "?" if way.dollars is None else money(way.dollars),
            of_alone(way.dollars),
            f"{100 * way.late:.1f} %",
        )
        for name, way in comparison.ways.items()
    }
    if comparison.bound is not None:
        rows["at best"] = ("", "", money(comparison.bound), of_alone(comparison.bound), "")
    return [
        f"{comparison.trace.name}, with the deadline: mean dollars of {comparison.starts:,} starts",
        *(
            f"  {name:<16}{''.join(f'{cell:>14}' for cell in row)}".rstrip()
            for name, row in rows.items()
        ),
    ]
