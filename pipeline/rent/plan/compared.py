"""The machines that `pion plan` compares: those on the market, or those of one rental."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.rent.plan.estimate import Estimate
from pipeline.rent.plan.prices import Offer, look_up, market
from pipeline.rent.plan.spot_spread import narrow_spot
from pipeline.rent.sky_yaml import SkyYaml, read_sky_yaml


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

    def warning(self, job: Job, estimates: Sequence[Estimate]) -> list[str]:
        """Return a warning if the machines of the rental that the job fits on are all spot in one
        region or of one type of GPU; else nothing."""
        if self.sky_yaml is None:
            return []
        fitting = {(e.offer.gpu, e.offer.count, e.offer.use_spot) for e in estimates if e.fits}
        candidates = self.sky_yaml.candidates
        left = [c for c in candidates if (c.gpu, c.count, c.use_spot) in fitting]
        narrow = narrow_spot(job, self.sky_yaml, left)
        return [] if narrow is None else [f"warning: {narrow}"]


def on_the_market(job: Job, gpus: Sequence[str]) -> Compared:
    """Return the cheapest machine of each type of GPU. `gpus` names the types; empty: all.

    A machine has one GPU, or as many as the job's `hardware.workers`. Raises BadInput for an
    unknown GPU.
    """
    return Compared(*market(gpus, job.prices, count=max(1, job.hardware.workers or 1)))


def of_rental(job: Job, path: str) -> Compared:
    """Return the machines that the SkyPilot file `path` lists.

    Raises BadInput if SkyPilot does not accept the file, and if nobody offers any of the machines.
    """
    sky_yaml = read_sky_yaml(path)
    offers, notes = [], []
    for candidate in sky_yaml.candidates:
        found = look_up(candidate, sky_yaml.num_nodes, job.prices)
        if isinstance(found, Offer):
            offers.append(found)
        else:
            notes.append(f"{candidate}: {found.why}")
    if not offers:
        raise BadInput("\n".join([f"nobody offers a machine of {path}.", *notes]))
    notes += sorted({f"{offer}: {offer.note}" for offer in offers if offer.note})
    if sky_yaml.num_nodes > 1:
        notes.append(f"time and dollars are for {sky_yaml.num_nodes} machines, $/h is for one")
    return Compared(offers, notes, sky_yaml.num_nodes, sky_yaml)
