"""What a proposed job costs on today's cards, as `pion plan` estimates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.console.formats import minutes_or_hours, money
from pipeline.console.out import saying_if_slow
from pipeline.job import Job
from pipeline.rent.plan.compared import on_the_market
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.speeds import Known, bench_results


@dataclass(frozen=True)
class Market:
    """Today's machines, what was measured of cards, and what is to be said about the prices."""

    offers: Sequence[Offer]
    known: Known
    notes: Sequence[str]

    @property
    def priced(self) -> bool:
        """Whether any machine has a price."""
        return any(offer.price is not None for offer in self.offers)


def todays_market(job: Job) -> Market:
    """Return the cheapest machine of each type of GPU today, spot and on demand."""
    with saying_if_slow("asking SkyPilot for the prices of machines"):
        compared = on_the_market(job, ())
    return Market(compared.offers, Known(bench=bench_results(())), compared.notes)


def cheapest(job: Job, market: Market, rows: int | None) -> Estimate | None:
    """Return the cheapest way to train a job whose conversations fill `rows` rows; None: no price.

    This is the only place that asks the planner.
    """
    if rows is not None and job.sft is not None and not job.section("sft").steps_are_known:
        job.section("sft").know_rows(rows)
    estimates = (estimate(job, offer, market.known) for offer in market.offers)
    priced = [e for e in estimates if e.fits and e.dollars is not None]
    return min(priced, key=lambda e: e.dollars or 0.0, default=None)


def in_words(found: Estimate | None, market: Market) -> str:
    """Return the price in a sentence, or that there is none."""
    if found is None and not market.priced:
        why = "; ".join(note for note in market.notes if not note.startswith("prices"))
        said = f"no price for any card today{f' ({why})' if why else ''}"
        return f"{said}, so --dollars did not limit the size"
    if found is None:
        return "it fits on no card that has a price today; `pion plan` says why"
    assert found.dollars is not None
    assert found.hours is not None
    return (
        f"{money(found.dollars)}: about {minutes_or_hours(found.hours)} on {found.offer} at "
        f"${found.offer.price:.2f}/h, the cheapest of "
        f"{len({offer.gpu for offer in market.offers})} types of GPU today"
    )
