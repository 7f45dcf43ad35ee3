"""The machines that a job can be trained on, and what they cost: SkyPilot's catalog, or the job's
own prices.

SkyPilot keeps its catalogs on disk and fetches them again every few hours. Without a network it
uses the catalogs on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import some
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job import Job, Price
from pipeline.job.section import made
from pipeline.machine.gpus import GPU_TYPES, gpu_memory
from pipeline.machine.rented import CPU
from pipeline.machine.time_limit import within
from pipeline.rent.sky_yaml import Candidate, SkyYaml, machine_in_words, read_sky_yaml
from pipeline.rent.skypilot import did_you_mean, enabled_clouds, quiet, sky_module

# These are clusters that the user owns, so they have no prices.
NO_CATALOG = ("kubernetes", "ssh", "slurm")

# A catalog that needs more seconds to fetch is not used.
CATALOG_SECONDS = 10.0

# How many names a message has.
LISTED = 8

# The assumed time from when a machine is paid for to its first step: boot, install, restore.
RESTART_SECONDS = 120.0

Prices = Mapping[str, Price]


@dataclass(frozen=True)
class Offer:
    """A machine and its price. `spot` and `on_demand` are dollars per hour for the whole machine,
    None if unknown. `gpu_memory` is the bytes of one GPU.

    The names of the fields are keys of `pion plan --json` (tests/golden/json/keys.txt)."""

    gpu: str | None
    count: int
    cloud: str | None = None
    region: str | None = None
    use_spot: bool = False
    spot: float | None = None
    on_demand: float | None = None
    gpu_memory: int | None = None
    disk_gb: int = 0
    note: str | None = None  # why the catalog's price is missing, or nobody offers the machine
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    """Price by `cloud/region`, for every place that offers the machine."""

    @property
    def price(self) -> float | None:
        """Dollars per hour of this machine, spot or on demand as it would be rented."""
        return self.spot if self.use_spot else self.on_demand

    @property
    def usable_bytes(self) -> int:
        """The bytes of one GPU, whose memory is known, that training may use."""
        from pion.train.micro_batch import HEADROOM  # torch takes seconds to import

        return int((self.gpu_memory or 0) * (1 - HEADROOM))

    def __str__(self) -> str:
        return machine_in_words(self.gpu, self.count, self.use_spot, self.cloud, self.region)


class NotOffered(Offer):
    """A machine that nobody offers; `note` says why. SkyPilot uses the other candidates if there
    are any; a name that nobody knows is a mistake."""

    @property
    def misnamed(self) -> bool:
        return self.gpu is not None and self.gpu not in GPU_TYPES


# ---------------------------------------------------------------- the machines to compare


def machines_for(
    job: Job, gpus: Sequence[str], on: str | None, others: Sequence[int] = (), *, quiet: bool
) -> tuple[list[Offer], list[str], SkyYaml | None]:
    """Return the machines of the rental `on`, notes for the user, and the rental; without `on`, the
    machines on the market.

    Raises as `of_rental` and `on_the_market`. If it is slow, says so, unless it is `quiet`.
    """
    message = "asking SkyPilot for the prices of machines, which it fetches every few hours"
    with saying_if_slow(message, quiet=quiet):
        return (*on_the_market(job, gpus, others), None) if on is None else of_rental(job, on)


def on_the_market(
    job: Job, gpus: Sequence[str], others: Sequence[int] = ()
) -> tuple[list[Offer], list[str]]:
    """Return the cheapest machine of each type of GPU, and notes. `gpus` names the types; empty:
    all.

    A machine has one GPU, or as many as the job's `hardware.workers`: the fewest, if their number
    may change. If the job leaves that open, machines with one of the numbers `others` are compared,
    too. Raises BadInput for an unknown GPU.
    """
    workers = job.hardware.min_workers
    counts = (1, *others) if workers is None else (max(1, workers),)
    return market(gpus, job.prices, counts=counts)


def of_rental(job: Job, path: str) -> tuple[list[Offer], list[str], SkyYaml]:
    """Return the machines that the SkyPilot file `path` lists, notes, and the rental.

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
    return offers, notes, sky_yaml


# ---------------------------------------------------------------- a machine of a rental


def cheapest_first(offers: Iterable[Offer]) -> list[Offer]:
    """Return offers by price; offers without a price come last."""
    return sorted(offers, key=lambda o: (o.price is None, o.price or 0.0, str(o)))


def look_up(candidate: Candidate, num_nodes: int = 1, prices: Prices | None = None) -> Offer:
    """Return the cheapest machine for a candidate, or the one that nobody offers.

    The job's own `prices` override the catalog.
    """
    offer = Offer(
        gpu=candidate.gpu,
        count=candidate.count,
        cloud=candidate.cloud,
        region=candidate.region,
        use_spot=candidate.use_spot,
        gpu_memory=gpu_memory(candidate.gpu) if candidate.gpu else None,
        disk_gb=candidate.disk_gb,
    )
    clouds = [candidate.resources.cloud] if candidate.cloud else enabled_clouds()
    note = None if clouds else "no cloud is enabled here"
    answers = list[Offer | str]()
    for cloud in clouds:
        try:
            with quiet():
                answers.append(_cheapest(cloud, candidate, num_nodes, offer))
        except Exception as error:  # SkyPilot and its clouds raise all kinds of errors
            note = f"{cloud}'s catalog can't be read ({type(error).__name__})"
    offers = [answer for answer in answers if isinstance(answer, Offer)]
    if not offers and note is None:
        return NotOffered(**vars(offer) | {"note": "; ".join(map(str, answers[:3]))})
    best = cheapest_first(offers)[0] if offers else replace(offer, note=note)
    everywhere = {place: price for each in offers for place, price in each.elsewhere.items()}
    return _with_own_price(replace(best, elsewhere=everywhere), prices or {})


def market(
    gpus: Sequence[str],
    prices: Prices | None = None,
    *,
    counts: Sequence[int] = (1,),
    cloud: str | None = None,
) -> tuple[list[Offer], list[str]]:
    """Return the cheapest machine of each type of GPU, spot and on demand; and notes for the user.

    A machine has the first of `counts` GPUs. Where a catalog offers machines with one of the other
    counts, return these, too. `gpus` names the types. If it is empty, use all types with a price,
    or all types that are known if none has a price. A type that no catalog offers in the first
    count has no price, unless the job sets one. Of all clouds, only `cloud` is read if it is named.
    Raises BadInput for a name that nobody knows.
    """
    by_name, notes = _catalog(cloud)
    prices = prices or {}
    if prices:
        notes.append(f"prices of {', '.join(sorted(prices))}: the job's own")
    _require_listed(gpus, {*GPU_TYPES, *by_name, *prices})
    offered = {
        (gpu, number): [info for info in infos if info.accelerator_count == number]
        for gpu, infos in by_name.items()
        for number in counts
    }
    priced = {gpu for (gpu, _), infos in offered.items() if infos} | prices.keys()
    lacking = [gpu for gpu in gpus or sorted(GPU_TYPES) if gpu in by_name.keys() - priced]
    if lacking:
        numbers = " or ".join(map(str, sorted(set(counts))))
        notes.append(f"not offered with {numbers} GPUs per machine: {', '.join(lacking)}")
    types = gpus or sorted(GPU_TYPES.keys() & priced) or GPU_TYPES
    machines = [
        _with_own_price(_of_market(gpu, number, offered.get((gpu, number), []), use_spot), prices)
        for gpu, number, use_spot in product(types, counts, (True, False))
        if number == counts[0] or offered.get((gpu, number))
    ]
    return [offer for offer in machines if offer.price is not None or not offer.use_spot], notes


def _require_listed(gpus: Sequence[str], names: Set[str]) -> None:
    """Raise BadInput for a type of GPU that has none of these names."""
    for gpu in gpus:
        if gpu not in names:
            hint = did_you_mean(gpu, sorted(names), f"known: {', '.join(sorted(names))}.")
            raise BadInput(
                f"--gpu {gpu}: SkyPilot has no GPU with that name. {hint[0].upper()}{hint[1:]}"
            )


def _catalog(cloud: str | None) -> tuple[dict[str, list[Any]], list[str]]:
    """Return what SkyPilot's catalogs offer of each GPU, and a note that names the catalogs, or
    says why there are none."""
    try:
        sky_module()  # importing takes seconds, which should not count against the limit
        clouds, by_name = within(CATALOG_SECONDS, partial(_whole_market, cloud))
    except BadInput as error:
        return {}, [str(error)]
    except Exception as error:  # SkyPilot and its clouds raise all kinds of errors
        return {}, [f"SkyPilot's catalog can't be read ({type(error).__name__})"]
    return by_name, [f"prices: the cheapest region in SkyPilot's catalog of {', '.join(clouds)}"]


def _whole_market(cloud: str | None) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the clouds to compare and their GPUs: `cloud`, or else the enabled clouds, or else
    those whose catalog is on this disk."""
    from sky.catalog.common import get_catalog_path

    clouds = [str(each).lower() for each in ([cloud] if cloud else enabled_clouds())]
    if not clouds:
        clouds = [path.parent.name for path in Path(get_catalog_path("")).glob("*/vms.csv")]
    clouds = sorted(each for each in clouds if each not in NO_CATALOG) or ["runpod"]
    with quiet():
        return clouds, _gpus_of(*clouds)


def _of_market(gpu: str, count: int, infos: Sequence[Any], use_spot: bool) -> Offer:
    """Return the cheapest machine of `count` GPUs in the catalogs' `infos`."""
    price = attrgetter("spot_price" if use_spot else "price")
    priced = [info for info in infos if _dollars(price(info)) is not None]
    best = min(priced, key=price, default=None)
    return Offer(
        gpu=gpu,
        count=count,
        cloud=best and best.cloud,
        region=best and best.region,
        use_spot=use_spot,
        spot=best and _dollars(best.spot_price),
        on_demand=best and _dollars(best.price),
        gpu_memory=gpu_memory(gpu, best and best.device_memory),
    )


def _dollars(price: float | None) -> float | None:
    """Return a price of a catalog, in which a price that is not there may be NaN."""
    return None if price is None or math.isnan(price) else float(price)


def _with_own_price(offer: Offer, prices: Prices) -> Offer:
    price = prices.get(offer.gpu or CPU)
    if price is None:
        return offer
    count = max(1, offer.count)
    spot, on_demand = (p if p is None else p * count for p in (price.spot, price.on_demand))
    return replace(offer, spot=spot, on_demand=on_demand, note=None, elsewhere={})


def _cheapest(cloud: Any, candidate: Candidate, num_nodes: int, offer: Offer) -> Offer | str:
    """Return the candidate in the cloud's cheapest region, or why the cloud does not have it."""
    resources = candidate.resources.copy(cloud=cloud)
    feasible = cloud.get_feasible_launchable_resources(resources, num_nodes)
    if not feasible.resources_list:
        return str(feasible.hint or _why_none(cloud, candidate))
    launchable = feasible.resources_list[0]
    prices = {
        region.name: _price(launchable, region.name, candidate.zone, candidate.use_spot)
        for region in launchable.get_valid_regions_for_launchable()
    }
    priced = [(price, name) for name, price in prices.items() if price is not None]
    if not priced:
        kind = "spot " if candidate.use_spot else ""
        machine = candidate.gpu or launchable.instance_type
        return f"{cloud} lists no {kind}price for {machine}"
    price, region = min(priced)
    other = _price(launchable, region, candidate.zone, not candidate.use_spot)
    spot, on_demand = (price, other) if candidate.use_spot else (other, price)
    memory = offer.gpu_memory
    if memory is None and candidate.gpu is not None:
        infos = _gpus_of(str(cloud).lower()).get(candidate.gpu, [])
        memory = next((gpu_memory(candidate.gpu, info.device_memory) for info in infos), None)
    return replace(
        offer,
        cloud=str(cloud),
        region=region,
        spot=spot,
        on_demand=on_demand,
        gpu_memory=memory,
        elsewhere={f"{cloud}/{name}": dollars for dollars, name in priced},
    )


def _price(launchable: Any, region: str, zone: str | None, use_spot: bool) -> float | None:
    try:
        machine = launchable.copy(region=region, zone=zone, use_spot=use_spot)
        return _dollars(machine.get_cost(3600))
    except (ValueError, AssertionError):  # no such price, or the prices of zones differ
        return None


def _why_none(cloud: Any, candidate: Candidate) -> str:
    """Return why the cloud does not have the candidate: GPU name, count, region, or spot."""
    gpu, by_name = candidate.gpu or "", _gpus_of(str(cloud).lower())
    infos, has = by_name.get(gpu, []), f"it has {some(list(by_name), LISTED)}"
    here = [info for info in infos if candidate.region in (None, info.region)]
    regions = some(sorted({info.region for info in infos}), LISTED)
    counts = sorted({int(info.accelerator_count) for info in here})
    limit = candidate.resources.max_hourly_cost
    unpriced = all(_dollars(info.spot_price) is None for info in here)
    hint = did_you_mean(gpu, sorted({*by_name, *GPU_TYPES}), has)
    reasons = {
        f"{cloud} has no machine of that size": not gpu,
        f"{cloud} has no {gpu}; {has}": not infos and gpu in GPU_TYPES,
        f"{cloud} has no GPU called {gpu}; {hint}": not infos,
        f"{cloud} has {gpu} in {regions}, not in {candidate.region}": not here,
        f"{cloud} offers {gpu} only with {some([*map(str, counts)], LISTED)} per machine": (
            candidate.count not in counts
        ),
        f"{cloud} lists no spot price for {gpu}": candidate.use_spot and unpriced,
        f"{cloud} has {gpu}, but not for max_hourly_cost: {limit} with the requested cpus and "
        "memory": limit is not None,
        f"{cloud} has {gpu}, but not with the requested cpus and memory": True,
    }
    return made(reasons)[0]


def _gpus_of(*clouds: str) -> dict[str, list[Any]]:
    """Return, for each GPU, what the catalogs of these clouds offer in every region."""
    sky_module()
    from sky import catalog

    return catalog.list_accelerators(gpus_only=True, clouds=list(clouds), all_regions=True)
