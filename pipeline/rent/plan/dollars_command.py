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
from pipeline.job.digest import Difference, digest_job
from pipeline.job.section import DOLLARS, HOURS
from pipeline.ladder.prediction import Fit
from pipeline.ladder.record import SHOWN, read_fitted
from pipeline.rent.plan.compared import Compared, machines_for
from pipeline.rent.plan.counted import expect_rows
from pipeline.rent.plan.dollars import Asked, Money, options_for
from pipeline.rent.plan.dollars_words import Answer, as_lines
from pipeline.rent.plan.dollars_words import as_json as answer_json
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import Size, sizes_of
from pipeline.rent.plan.speeds import Known, bench_results, past_speeds
from pipeline.rent.plan.what_fits import COUNTS
from pipeline.state.stores import open_store
from pipeline.state.stores.errors import before_work


def show_dollars(asked: Asked, *, as_json: bool) -> int:
    """Print what to train for the money on each card, the best first.

    Raises BadInput for a job with mistakes, for money that buys too little or more than the ladder
    is trusted for, for a ladder that does not exist, has no fit or is of other text, and if no
    machine has a price.
    """
    _check(asked.money)
    with saying_if_slow("reading jobs and the speeds of earlier runs", quiet=as_json):
        sizes = sizes_of(asked.job, asked.overrides)
        fit, sizes, left_out = _by_ladder(asked, sizes)
        sizes = _with_speeds(sizes, asked.bench)
        uncertain = dict.fromkeys(filter(None, [expect_rows(size.job) for size in sizes]))
    compared = machines_for(sizes[0].job, asked.gpus, asked.on, COUNTS, quiet=as_json)
    market = replace(compared, offers=_priced(compared))
    answer = Answer(asked, options_for(asked.money, sizes, market, fit), fit, left_out)
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


def _by_ladder(asked: Asked, sizes: Sequence[Size]) -> tuple[Fit | None, list[Size], list[str]]:
    """Return the fit of the ladder in the job's store, the models whose jobs have its text, and the
    names of the others. Without a ladder, these are None, all models and none.

    Raises BadInput if no model has the ladder's text.
    """
    if asked.ladder is None:
        return None, list(sizes), []
    with before_work("Nothing was started."):
        stored = read_fitted(open_store(sizes[0].job.store), asked.ladder)
    others = {size.name: stored.other_text(digest_job(size.job)) for size in sizes}
    same = [size for size in sizes if not others[size.name]]
    if not same:
        raise _of_other_text(asked.ladder, sizes[0], others[sizes[0].name])
    return stored.fit, same, [size.name for size in sizes if others[size.name]]


def _of_other_text(ladder: str, size: Size, other: Sequence[Difference]) -> BadInput:
    """Return the error for a ladder whose runs learned another text than the job has."""
    more = [f"    and {len(other) - SHOWN} more"] if len(other) > SHOWN else []
    return BadInput(
        "\n".join(
            [
                f"the ladder {ladder!r} has other data or another tokenizer than {size.path}, so "
                "its bits per byte say nothing of this job:",
                *(f"    {one}" for one in other[:SHOWN]),
                *more,
                "Nothing was started. Your options:",
                "  name the job of the ladder, or give these settings the ladder's values;",
                f"  pion ladder {size.path} name=NAME    a ladder of this job;",
                "  leave out --ladder: then sizes follow a rule, and no loss is predicted.",
            ]
        )
    )


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
