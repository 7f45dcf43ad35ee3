"""Whether a run may continue, given what it may cost on all its machines together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.machine.rented import PRICE_VARIABLE, rental_price
from pipeline.state.records import Spent

if TYPE_CHECKING:
    from pipeline.job import Budget

_FIX = (
    f"Set {PRICE_VARIABLE} (0 for your own machine) or budget.dollars_per_hour, or limit "
    "budget.hours instead. Nothing was started."
)


def price_per_hour(budget: Budget, environment: Mapping[str, str] = os.environ) -> float | None:
    """Return this machine's price in dollars per hour: the rental's, else the job's, else None.

    Raises BadInput if the rental's price can't be read.
    """
    rented = rental_price(environment)
    return budget.dollars_per_hour if rented is None else rented


def check_budget(budget: Budget, price: float | None) -> None:
    """Raise BadInput if dollars are limited although this machine's price is not known."""
    if budget.dollars is not None and price is None:
        raise BadInput(
            f"budget.dollars is {budget.dollars:g}, but the price of this machine is not known. "
            + _FIX
        )


def over_budget(budget: Budget, spent: Spent) -> str | None:
    """Return why the run stops now (exit code 4), or None while it may continue."""
    over = []
    if budget.dollars is not None and spent.dollars >= budget.dollars:
        over.append(("dollars", f"${spent.dollars:.2f} of ${budget.dollars:.2f}"))
    if budget.hours is not None and spent.hours >= budget.hours:
        over.append(("hours", f"{spent.hours:.2f} of {budget.hours:g} hours"))
    if not over:
        return None
    fields = " and ".join(f"budget.{name}" for name, _ in over)
    return (
        f"The budget is spent: {' and '.join(words for _, words in over)} on all machines of this "
        f"run. Every finished step is saved. To continue, raise {fields} and run the same command "
        "again."
    )
