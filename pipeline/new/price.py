"""The largest proposal that the money buys, and its price on the cheapest machine today."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pipeline.console.formats import minutes_or_hours, money
from pipeline.job import Job
from pipeline.machine.time_limit import within
from pipeline.new.job_text import Proposal
from pipeline.new.rules import FromRandom, fewer_passes, shortened
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import Offer, on_the_market
from pipeline.rent.plan.speeds import Known, bench_results

# A run may cost so much more than its training: boots, preparing, evaluation.
SPARE = 0.95
# Prices that need more seconds are not waited for.
PRICE_SECONDS = 10.0


def affordable(proposals: Iterable[Proposal], job_of: Callable[[Proposal], Job]) -> Proposal:
    """Return the largest proposal that the money buys, with its price. The largest comes first."""
    offers, why, dearer = list[Offer](), "", ""
    known = Known(bench=bench_results(()))
    for p in proposals:
        job = job_of(p)
        if not offers:
            offers, why = _asked_for(job)
        if not offers:
            none = f"no price for any card today{f' ({why})' if why else ''}"
            return replace(p, price=f"{none}, so --dollars did not limit the size")
        best = _cheapest(job, offers, known)
        if best is not None and (best.dollars or 0.0) <= p.options.dollars:
            return replace(p, price=_price(best, offers) + dearer)
        dearer = _too_dear(p, best)
    if best is not None and best.dollars:
        share = SPARE * p.options.dollars / best.dollars
        p = replace(
            p,
            pretraining=p.pretraining and shortened(p.pretraining, share),
            tuning=p.tuning and fewer_passes(p.tuning, share),
        )
        best = _cheapest(job_of(p), offers, known)
    return replace(p, price=_price(best, offers) + dearer)


def _asked_for(job: Job) -> tuple[list[Offer], str]:
    """Return the offers with a price that SkyPilot knows, and why there is none."""
    try:
        offers, notes = within(PRICE_SECONDS, lambda: on_the_market(job, ()))
    except TimeoutError:
        return [], f"SkyPilot did not say them within {PRICE_SECONDS:.0f} s"
    why = "; ".join(note for note in notes if not note.startswith("prices"))
    return [offer for offer in offers if offer.price is not None], why


def _too_dear(p: Proposal, best: Estimate | None) -> str:
    """Return what a proposal that is too dear would cost."""
    if best is None or best.dollars is None or p.last == "prefer":
        return ""
    name = p.pretraining.preset if isinstance(p.pretraining, FromRandom) else "it"
    return f". All of {name} would cost {money(best.dollars)}"


def _cheapest(job: Job, offers: Sequence[Offer], known: Known) -> Estimate | None:
    """Return the cheapest way to train a job; None: no price."""
    estimates = (estimate(job, offer, known) for offer in offers)
    priced = [e for e in estimates if e.fits and e.dollars is not None]
    return min(priced, key=lambda e: e.dollars or 0.0, default=None)


def _price(best: Estimate | None, offers: Sequence[Offer]) -> str:
    """Return the price in a sentence, or that there is none."""
    if best is None:
        return "it fits on no card that has a price today; `pion plan` says why"
    assert best.dollars is not None
    assert best.hours is not None
    return (
        f"{money(best.dollars)}: about {minutes_or_hours(best.hours)} on {best.offer} at "
        f"{money(best.offer.price or 0.0)}/h, the cheapest of "
        f"{len({offer.gpu for offer in offers})} types of GPU today"
    )
