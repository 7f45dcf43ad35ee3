"""What this machine costs, and whether a run may continue, given what it may cost on all its
machines together. RunPod is asked what its pod costs: SkyPilot's price list may be out of date."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, Stopped
from pipeline.console.formats import money
from pipeline.machine.rented import (
    PRICE_VARIABLE,
    PROC,
    price_limit,
    rental_price,
    with_providers,
)
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
    if told > (limit := price_limit(environment)):
        raise Stopped(
            f"this machine costs {money(told)} per hour, and max_hourly_cost of the SkyPilot file "
            f"is {limit:g}. Nothing was started, and what is committed is safe. To rent at that "
            "price, raise max_hourly_cost and launch again."
        )
    if told <= SAID_ABOVE * planned:
        return told
    words = (
        f"this machine costs {money(told)} per hour, {told / planned:.2f} times the planned "
        f"{money(planned)}"
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


# ---------------------------------------------------------------- the price that RunPod says

# RunPod's own library reads this variable, too.
_API_VARIABLE, _API = "RUNPOD_API_BASE_URL", "https://api.runpod.io"
# A start of a run waits for each key at most this long.
_SECONDS = 5.0
_MOST_BYTES = 65536


def pod_price(environment: Mapping[str, str]) -> float | None:
    """Return what this pod costs in dollars per hour; None if RunPod can't be asked.

    RunPod gives each pod its key. If the pod's key may not ask, the key that SkyPilot copies to
    the machines it rents is used, if there is one.
    """
    told = with_providers(environment, PROC)
    pod = told.get("RUNPOD_POD_ID", "")
    # RunPod rents single machines, so there is no price for several.
    if re.fullmatch(r"[\w-]+", pod) is None or told.get("SKYPILOT_NUM_NODES", "1") != "1":
        return None
    api = told.get(_API_VARIABLE) or _API
    return next((p for key in _keys(told) if (p := _ask(api, key, pod)) is not None), None)


def _keys(environment: Mapping[str, str]) -> Iterator[str]:
    if key := environment.get("RUNPOD_API_KEY"):
        yield key
    with contextlib.suppress(OSError, RuntimeError, ValueError, LookupError, TypeError):
        file = Path(environment.get("HOME") or "~", ".runpod", "config.toml").expanduser()
        key = tomllib.loads(file.read_text("utf-8"))["default"]["api_key"]
        if isinstance(key, str):
            yield key


def _ask(api: str, key: str, pod: str) -> float | None:
    query = {"query": f'query {{ pod(input: {{podId: "{pod}"}}) {{ costPerHr }} }}'}
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "User-Agent": "pion",
    }
    try:
        request = urllib.request.Request(f"{api}/graphql", json.dumps(query).encode(), headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_SECONDS) as answer:
            price = json.loads(answer.read(_MOST_BYTES))["data"]["pod"]["costPerHr"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return None
    known = isinstance(price, int | float) and not isinstance(price, bool) and 0 < price < 1e6
    return float(price) if known else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keeps the key from being sent to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
