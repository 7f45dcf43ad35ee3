"""Whether a run may continue, given what it may cost on all its machines together."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pion.errors import BadInput, Stopped
from pipeline.console.formats import money
from pipeline.machine.pod_price import pod_price
from pipeline.machine.rented import PRICE_VARIABLE, rental_price
from pipeline.state.head import Spent

if TYPE_CHECKING:
    from pipeline.job import Budget

# A machine that costs more than this multiple of the planned price is reported.
SAID_ABOVE = 1.05


def price_per_hour(budget: Budget, environment: Mapping[str, str] = os.environ) -> float | None:
    """Return this machine's price in dollars per hour: the rental's, else the job's, else None.

    Raises BadInput if the rental's price can't be read.
    """
    rented = rental_price(environment)
    return budget.dollars_per_hour if rented is None else rented


def true_price(
    budget: Budget, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> float | None:
    """Return what this machine really costs in dollars per hour, as far as that can be found out.

    Say so if it costs more than planned. Raises Stopped if it costs more than the job allows, and
    BadInput if the planned price can't be read.
    """
    planned = price_per_hour(budget, environment)
    if environment.get(PRICE_VARIABLE) is not None:
        return planned  # a person has set it
    told = pod_price(environment)
    if told is None or not planned:
        return planned if told is None else told
    if told <= SAID_ABOVE * planned:
        return told
    words = (
        f"this machine costs ${told:.2f} per hour, {told / planned:.2f} times the planned "
        f"${planned:.2f}"
    )
    if told <= budget.price_tolerance * planned:
        say(f"{words}. The costs of this run are counted with the higher price.")
        return told
    raise Stopped(
        f"{words}, and budget.price_tolerance is {budget.price_tolerance:g}. Nothing was started, "
        "and what is committed is safe. To rent at that price, launch again with "
        f"budget.price_tolerance={math.ceil(10 * (told / planned)) / 10:g}. To rent another "
        "machine, name another SkyPilot file."
    )


def check_budget(budget: Budget, price: float | None) -> None:
    """Raise BadInput if dollars are limited although this machine's price is not known."""
    if budget.dollars is not None and price is None:
        raise BadInput(
            f"budget.dollars is {budget.dollars:g}, but the price of this machine is not known. "
            f"Set {PRICE_VARIABLE} (0 for your own machine) or budget.dollars_per_hour, or limit "
            "budget.hours instead. Nothing was started."
        )


def over_budget(budget: Budget, spent: Spent) -> str | None:
    """Return why the run stops now (exit code 4), or None while it may continue."""
    over = {}
    if budget.dollars is not None and spent.dollars >= budget.dollars:
        over["budget.dollars"] = f"{money(spent.dollars)} of {money(budget.dollars)}"
    if budget.hours is not None and spent.hours >= budget.hours:
        over["budget.hours"] = f"{spent.hours:.2f} of {budget.hours:g} hours"
    if not over:
        return None
    return (
        f"The budget is spent: {' and '.join(over.values())} on all machines of this run. Every "
        f"finished step is saved. To continue, raise {' and '.join(over)} and run the same command "
        "again."
    )
