"""The machines that `pion plan` compares: those on the market, or those of one rental."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.rent.plan.prices import NotOffered, Offer, look_up, market
from pipeline.rent.sky_yaml import read_sky_yaml


@dataclass(frozen=True)
class Compared:
    """Offers to compare, and notes for the user. `num_nodes` is how many such machines train
    together."""

    offers: Sequence[Offer]
    notes: Sequence[str]
    num_nodes: int = 1


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
    found = [look_up(c, sky_yaml.num_nodes, job.prices) for c in sky_yaml.candidates]
    offers = [offer for offer in found if isinstance(offer, Offer)]
    notes = [f"{none.candidate}: {none.why}" for none in found if isinstance(none, NotOffered)]
    if not offers:
        raise BadInput("\n".join([f"nobody offers a machine of {path}.", *notes]))
    notes += sorted({f"{offer}: {offer.note}" for offer in offers if offer.note})
    if sky_yaml.num_nodes > 1:
        notes.append(f"time and dollars are for {sky_yaml.num_nodes} machines, $/h is for one")
    return Compared(offers, notes, sky_yaml.num_nodes)
