"""The largest proposal that the money buys, and its price on the cheapest machine today.

Importing SkyPilot takes seconds. So its price lists on this disk are read without it. It is asked
only where there are none, or where they are so old that it would fetch them again.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.console.formats import minutes_or_hours, money
from pipeline.job import Job
from pipeline.machine.time_limit import within
from pipeline.new.job_text import Proposal
from pipeline.new.rules import FromRandom, fewer_passes, shortened
from pipeline.rent.plan.compared import on_the_market
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.gpus import GPU_TYPES, gpu_memory
from pipeline.rent.plan.prices import Offer, cheapest_first
from pipeline.rent.plan.speeds import Known, bench_results

# A run may cost so much more than its training: boots, preparing, evaluation.
SPARE = 0.95
# Prices that need more seconds are not waited for.
PRICE_SECONDS = 10.0
# Below this folder of the home, SkyPilot keeps the price list of each cloud that it was asked for
# (its documentation names the folder). It fetches a list again after so many seconds.
LISTS, FRESH_SECONDS = ".sky/catalogs", 7 * 3600
# SkyPilot's spelling of clouds whose name is not as its folder.
CLOUDS = {"aws": "AWS", "gcp": "GCP", "runpod": "RunPod"}


def affordable(proposals: Iterable[Proposal], job_of: Callable[[Proposal], Job]) -> Proposal:
    """Return the largest proposal that the money buys, with its price. The largest comes first."""
    offers, why, dearer = listed_offers(), "", ""
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


def listed_offers() -> list[Offer]:
    """Return the cheapest machine with one GPU of each type, spot and on demand, by the fresh price
    lists on this disk."""
    offers: list[Offer] = []
    oldest = time.time() - FRESH_SECONDS
    for file in (Path.home() / LISTS).glob("v*/*/vms.csv"):
        if file.stat().st_mtime > oldest:
            try:
                with file.open(encoding="utf-8", newline="") as stream:
                    offers += _listed(file.parent.name, csv.DictReader(stream))
            except (OSError, KeyError, ValueError, csv.Error):
                return []  # people edit these lists; SkyPilot says what is wrong
    cheapest: dict[tuple[str | None, bool], Offer] = {}
    for offer in cheapest_first(offer for offer in offers if offer.price is not None):
        cheapest.setdefault((offer.gpu, offer.use_spot), offer)
    return list(cheapest.values())


def _listed(cloud: str, rows: Iterable[Mapping[str, str]]) -> Iterator[Offer]:
    """Yield the machines with one GPU in a cloud's price list, each spot and on demand."""
    for row in rows:
        if (gpu := row["AcceleratorName"]) in GPU_TYPES and float(row["AcceleratorCount"]) == 1:
            prices = (row["SpotPrice"], row["Price"])
            spot, on_demand = (float(price) if price else None for price in prices)
            machine = partial(Offer, gpu, 1, CLOUDS.get(cloud, cloud), row["Region"])
            for use_spot in (True, False):
                yield machine(use_spot, spot, on_demand, gpu_memory(gpu), 0)


def _asked_for(job: Job) -> tuple[list[Offer], str]:
    """Return the offers with a price that SkyPilot knows, and why there is none."""
    try:
        market = within(PRICE_SECONDS, lambda: on_the_market(job, ()))
    except TimeoutError:
        return [], f"SkyPilot did not say them within {PRICE_SECONDS:.0f} s"
    why = "; ".join(note for note in market.notes if not note.startswith("prices"))
    return [offer for offer in market.offers if offer.price is not None], why


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
