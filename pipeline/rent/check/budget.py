"""Check that the budget lets the run begin, and what the estimates say of where it would end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.console.formats import duration, money
from pipeline.cost.budget import check_budget, over_budget, price_per_hour
from pipeline.job import Budget, Job
from pipeline.job.digest import digest_job
from pipeline.job.section import mistakes_of
from pipeline.machine.rented import CPU, PRICE_VARIABLE
from pipeline.rehearsal.rehearse import read_head
from pipeline.rent.check import CheckRow
from pipeline.rent.deadline.times import OnDemand
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.run.done_and_changed_stages import plan_stages
from pipeline.state.head import Head, Spent

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from pipeline.rent.plan.estimate import Estimate

# How an amount of each limit of a budget is written.
WRITTEN: dict[str, Callable[[float], str]] = {
    "dollars": money,
    "hours": lambda hours: duration(3600 * hours),
}


def check_spent(job: Job) -> list[CheckRow]:
    """Check that the budget is not spent; warn if its dollars can't be counted on this machine."""
    over = _already_spent(job)
    if over is not None:
        raise BadInput(over)
    errors = mistakes_of(lambda: check_budget(job.budget, price_per_hour(job.budget)))
    says = "`pion run` on this machine would say"
    return [CheckRow("budget", None, f"{says}: {error}") for error in errors]


def check_budget_there(
    job: Job, sky_yaml: SkyYaml, estimates: Sequence[Estimate]
) -> list[CheckRow]:
    """Check that the budget lets the run begin there, and compare the lowest estimates of dollars
    and hours with it."""
    stops = _already_spent(job) or _price_missing(job, sky_yaml, estimates)
    if stops is not None:
        return [CheckRow("budget", False, stops)]
    fitting = [estimate for estimate in estimates if estimate.fits]
    least = {
        name: min((n for e in fitting if (n := getattr(e, name)) is not None), default=None)
        for name in WRITTEN
    }
    if low := _too_low(job.budget, least):
        return [CheckRow("budget", None, f"{low}, the estimate: the run would stop there")]
    within_it = [
        f"{WRITTEN[name](cost)} estimated of {WRITTEN[name](limit)}"
        for name, limit, cost in _limits(job.budget, least)
    ]
    return [CheckRow("budget", True, "; ".join(within_it))] if within_it else []


def _limits(budget: Budget, costs: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """Return the name of each limit of the budget, the limit, and its cost, if that is known."""
    limits = [(name, getattr(budget, name), cost) for name, cost in costs.items()]
    return [(n, limit, cost) for n, limit, cost in limits if limit is not None and cost is not None]


def _too_low(budget: Budget, costs: Mapping[str, float | None]) -> str:
    """Return, in words, the limits of the budget that are below these costs."""
    return " and ".join(
        f"budget.{name} {limit:g} is below {WRITTEN[name](cost)}"
        for name, limit, cost in _limits(budget, costs)
        if cost > limit
    )


def _already_spent(job: Job) -> str | None:
    """Return why the run would stop at once, if its cost so far has reached its budget."""
    if job.budget.dollars is None and job.budget.hours is None:
        return None
    head = read_head(job)
    over = None if head is None else over_budget(job.budget, head.spent)
    if over is None or all(
        plan.state == "done" for plan in plan_stages(job, digest_job(job), head)
    ):
        return None  # a finished run ends with 0
    return over


def _price_missing(job: Job, sky_yaml: SkyYaml, estimates: Sequence[Estimate]) -> str | None:
    """Return why the run would refuse a machine: `budget.dollars` needs the machine's price.

    `pion launch` tells the machine one price for each type of GPU, spot or on demand.
    """
    budget, offers = job.budget, [e.offer for e in estimates]
    has_price = budget.dollars_per_hour is not None or sky_yaml.envs.get(PRICE_VARIABLE)
    priced = {offer.gpu for offer in offers if offer.price is not None}
    missing = sorted({offer.gpu or CPU for offer in offers if offer.gpu not in priced})
    if budget.dollars is None or has_price or not missing:
        return None
    keys = " and ".join(f"prices.{gpu}" for gpu in missing)
    return (
        f"budget.dollars is {budget.dollars:g}, but the price of {', '.join(missing)} is not "
        f"known, so the run would refuse to start there. Set {keys} in the job, or "
        "budget.dollars_per_hour"
    )


def check_worst_case(job: Job, head: Head | None, first: OnDemand) -> list[CheckRow]:
    """Say so if the budget is below the worst case, in which all work is done on demand, on the
    machine that is requested `first`."""
    spent = head.spent if head is not None else Spent()
    hours = (first.work or 0.0) / 3600
    dollars = None if first.price is None else hours * first.price + spent.dollars
    if not (low := _too_low(job.budget, {"dollars": dollars, "hours": hours + spent.hours})):
        return []
    sentence = (
        f"{low}, the worst case, in which all work that is left is done on demand. The budget "
        "comes first: the run would stop there, with exit code 4"
    )
    return [CheckRow("budget", None, sentence)]
