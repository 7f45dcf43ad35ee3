"""`pion plan --dollars N`: what to train for so much money, and the command to run next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pion.errors import BadInput
from pipeline.console.formats import show
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job.section import DOLLARS, HOURS
from pipeline.rehearsal.rehearse import expect_rows
from pipeline.rent.plan.compared import Compared, machines_for
from pipeline.rent.plan.dollars import Asked, Money, options_for
from pipeline.rent.plan.dollars_words import Answer, as_lines
from pipeline.rent.plan.dollars_words import as_json as answer_json
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import Size, sizes_of
from pipeline.rent.plan.speeds import Known, bench_results, past_speeds
from pipeline.rent.plan.what_fits import COUNTS


def show_dollars(asked: Asked, *, as_json: bool) -> int:
    """Print what to train for the money on each card, the best first.

    Raises BadInput for a job with mistakes, for money that buys too little, and if no machine has a
    price.
    """
    _check(asked.money)
    with saying_if_slow("reading jobs and the speeds of earlier runs", quiet=as_json):
        sizes = sizes_of(asked.job, asked.overrides)
        sizes = _with_speeds(sizes, asked.bench)
        uncertain = dict.fromkeys(filter(None, [expect_rows(size.job) for size in sizes]))
    compared = machines_for(sizes[0].job, asked.gpus, asked.on, COUNTS, quiet=as_json)
    market = replace(compared, offers=_priced(compared))
    answer = Answer(asked, options_for(asked.money, sizes, market))
    if as_json:
        print(json.dumps(answer_json(answer, [*compared.notes, *uncertain]), indent=1))
    else:
        for line in as_lines(answer):
            show(line)
    return 0


def _check(money: Money) -> None:
    """Raise BadInput for numbers that are no money and no time."""
    for option, value, most in (
        ("--dollars", money.dollars, DOLLARS),
        ("--hours", money.hours, HOURS),
    ):
        if value is not None and not (math.isfinite(value) and 0 < value <= most):
            raise BadInput(f"{option} {value:g}: give a number above 0, at most {most:,}.")


def _with_speeds(sizes: Sequence[Size], bench: Sequence[str]) -> list[Size]:
    """Return the models with their known speeds. A store that does not answer costs a few seconds,
    and not as many for each model."""
    results = bench_results(bench)
    with ThreadPoolExecutor(len(sizes)) as pool:
        runs = pool.map(past_speeds, [size.job for size in sizes])
        known = [Known(found, results) for found in runs]
    return [replace(size, known=each) for size, each in zip(sizes, known, strict=True)]


def _priced(compared: Compared) -> list[Offer]:
    offers = [offer for offer in compared.offers if offer.price is not None and offer.gpu]
    if not offers:
        raise BadInput(
            "\n".join(
                [
                    "no machine with a GPU has a price here, so nobody knows what the money buys.",
                    *(f"  {note}" for note in compared.notes),
                    "Give prices of your own in dollars per hour, such as `prices={A40: 0.4}`, or "
                    "try again with a network: SkyPilot then fetches its catalog.",
                ]
            )
        )
    return offers
