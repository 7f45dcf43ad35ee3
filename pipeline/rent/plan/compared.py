"""The machines that `pion plan` compares: those on the market, or those of one rental.

Also a warning about a spot rental that waits for one region or for one type of GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pion.errors import BadInput
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job import Job
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import (
    NO_CATALOG,
    NotOffered,
    Offer,
    cheapest_first,
    look_up,
    market,
)
from pipeline.rent.sky_yaml import Candidate, SkyYaml, read_sky_yaml

# The most entries that a warning suggests.
SUGGESTIONS = 3


@dataclass(frozen=True)
class Compared:
    """Offers to compare, and notes for the user.

    `num_nodes` is how many such machines train together. `sky_yaml` is the rental, None on the
    market.
    """

    offers: Sequence[Offer]
    notes: Sequence[str]
    num_nodes: int = 1
    sky_yaml: SkyYaml | None = None

    def warnings(self, job: Job, estimates: Sequence[Estimate]) -> list[str]:
        """Return a warning if the machines of the rental that the job fits on are all spot in one
        region or of one type of GPU; else nothing."""
        if self.sky_yaml is None:
            return []
        fitting = {(e.offer.gpu, e.offer.count, e.offer.use_spot) for e in estimates if e.fits}
        candidates = [
            c for c in self.sky_yaml.candidates if (c.gpu, c.count, c.use_spot) in fitting
        ]
        return [*filter(None, [narrow_spot(job, self.sky_yaml, candidates)])]


def machines_for(
    job: Job, gpus: Sequence[str], on: str | None, several: Sequence[int] = (), *, quiet: bool
) -> Compared:
    """Return the machines of the rental `on`, or without one, those on the market.

    Raises as `of_rental` and `on_the_market`. If it is slow, says so, unless it is `quiet`.
    """
    message = "asking SkyPilot for the prices of machines, which it fetches every few hours"
    with saying_if_slow(message, quiet=quiet):
        return on_the_market(job, gpus, several) if on is None else of_rental(job, on)


def on_the_market(job: Job, gpus: Sequence[str], several: Sequence[int] = ()) -> Compared:
    """Return the cheapest machine of each type of GPU. `gpus` names the types; empty: all.

    A machine has one GPU, or as many as the job's `hardware.workers`: the fewest, if their number
    may change. If the job leaves that open, machines with one of the numbers `several` are
    compared, too. Raises BadInput for an unknown GPU.
    """
    workers = job.hardware.min_workers
    others = several if workers is None else ()
    return Compared(*market(gpus, job.prices, count=max(1, workers or 1), other_counts=others))


def of_rental(job: Job, path: str) -> Compared:
    """Return the machines that the SkyPilot file `path` lists.

    Raises BadInput if SkyPilot does not accept the file, and if nobody offers any of the machines.
    """
    sky_yaml = read_sky_yaml(path)
    answers = [(c, look_up(c, sky_yaml.num_nodes, job.prices)) for c in sky_yaml.candidates]
    offers = [offer for _, offer in answers if not isinstance(offer, NotOffered)]
    notes = [f"{c}: {offer.note}" for c, offer in answers if isinstance(offer, NotOffered)]
    if not offers:
        raise BadInput("\n".join([f"nobody offers a machine of {path}.", *notes]))
    for why in sorted({offer.note for offer in offers if offer.note}):
        unread = dict.fromkeys(str(offer) for offer in offers if offer.note == why)
        notes.append(f"{', '.join(unread)}: {why}")
    if sky_yaml.num_nodes > 1:
        notes.append(f"time and dollars are for {sky_yaml.num_nodes} machines, $/h is for one")
    return Compared(offers, notes, sky_yaml.num_nodes, sky_yaml)


# ---------------------------------------------------------------- a spot rental that may wait


def narrow_spot(job: Job, sky_yaml: SkyYaml, candidates: Sequence[Candidate]) -> str | None:
    """Return a warning if all `candidates` of a rental are spot machines in one region, or of one
    type of GPU; else None.

    The warning says which entries to add. A rental with an on-demand machine does not wait for
    spot.
    """
    mine = all((candidate.cloud or "").lower() in NO_CATALOG for candidate in candidates)
    if mine or not all(candidate.use_spot for candidate in candidates):
        return None
    sentences, entries, first = list[str](), list[Candidate](), candidates[0]
    if len({(candidate.cloud, candidate.region) for candidate in candidates}) == 1 and first.region:
        zone = first.zone if len({candidate.zone for candidate in candidates}) == 1 else None
        sentences.append(
            f"every machine is spot in {'/'.join(filter(None, (first.cloud, first.region, zone)))}:"
            " while there is none, the run waits. On recorded AWS markets, a second region "
            "shortened the median wait of a 28-hour run from 23 h to 0.5 h; a second zone of the "
            "same region did not."
        )
        entries += _elsewhere(job, sky_yaml, first)[:SUGGESTIONS]
    if len({candidate.gpu for candidate in candidates}) == 1 and first.gpu:
        sentences.append(
            f"every machine is a spot {first.gpu}: while none is free, the run waits. Other types "
            "of GPU may shorten the wait. That is unproven: no recorded market has several types."
        )
        entries += _of_other_gpus(job, sky_yaml, first)[:SUGGESTIONS]
    if not sentences:
        return None
    where = f"the list `ordered:` under `resources:` in {sky_yaml.path}"
    lines = "".join(f"\n- {_entry(candidate)}" for candidate in entries)
    sentences.append(f"Add to {where}:{lines}" if entries else f"Add entries to {where}.")
    return " ".join(sentences)


def _elsewhere(job: Job, sky_yaml: SkyYaml, first: Candidate) -> list[Candidate]:
    """Return the machine in the other regions of its cloud that have it, the cheapest first."""
    resources = first.resources.copy(region=None, zone=None)
    anywhere = replace(first, region=None, zone=None, resources=resources)
    prices = look_up(anywhere, sky_yaml.num_nodes, job.prices).elsewhere
    regions = (place.partition("/")[2] for place in sorted(prices, key=lambda p: (prices[p], p)))
    return [replace(first, region=region) for region in regions if region != first.region]


def _of_other_gpus(job: Job, sky_yaml: SkyYaml, first: Candidate) -> list[Candidate]:
    """Return the machine with the other types of GPU on which the job fits, the cheapest first."""
    offers, _ = market((), job.prices, count=first.count, cloud=first.cloud)
    spot = [o for o in offers if o.use_spot and o.gpu != first.gpu and o.price is not None]
    return [
        replace(first, gpu=offer.gpu)
        for offer in cheapest_first(spot)
        if estimate(job, offer, num_nodes=sky_yaml.num_nodes).fits
    ]


def _entry(candidate: Candidate) -> str:
    """Return the YAML of a spot machine, in one line."""
    fields = {
        "infra": "/".join(filter(None, ((candidate.cloud or "").lower(), candidate.region))),
        "accelerators": candidate.gpu and f"{candidate.gpu}:{candidate.count}",
        "use_spot": "true",
    }
    return f"{{{', '.join(f'{name}: {value}' for name, value in fields.items() if value)}}}"
