"""What machines cost, cheapest first: SkyPilot's catalog, or the job's own prices.

SkyPilot keeps its catalogs on disk and fetches them again every few hours. Without a network it
uses the catalogs on disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pipeline.job import Price
from pipeline.machine.rented import CPU
from pipeline.machine.time_limit import within
from pipeline.rent.plan.gpus import GPU_TYPES, gpu_memory
from pipeline.rent.sky_yaml import Candidate, machine_in_words
from pipeline.rent.skypilot import did_you_mean, enabled_clouds, quiet, sky_module

# These are clusters that the user owns, so they have no prices.
NO_CATALOG = ("kubernetes", "ssh", "slurm")

# A catalog that needs more seconds to fetch is not used.
CATALOG_SECONDS = 10.0

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
    cloud: str | None
    region: str | None
    use_spot: bool
    spot: float | None
    on_demand: float | None
    gpu_memory: int | None
    disk_gb: int
    note: str | None = None  # why the catalog's price is missing, or nobody offers the machine
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    """Price by `cloud/region`, for every place that offers the machine."""

    @property
    def price(self) -> float | None:
        """Dollars per hour of this machine, spot or on demand as it would be rented."""
        return self.spot if self.use_spot else self.on_demand

    def __str__(self) -> str:
        return machine_in_words(self.gpu, self.count, self.use_spot, self.cloud, self.region)


class NotOffered(Offer):
    """A machine that nobody offers; `note` says why. SkyPilot uses the other candidates if there
    are any; a name that nobody knows is a mistake."""

    @property
    def misnamed(self) -> bool:
        return self.gpu is not None and self.gpu not in GPU_TYPES


def cheapest_first(offers: Iterable[Offer]) -> list[Offer]:
    """Return offers by price; offers without a price come last."""
    return sorted(offers, key=lambda o: (o.price is None, o.price or 0.0, str(o)))


def unpriced(candidate: Candidate) -> Offer:
    """Return the machine that a candidate asks for, without a price."""
    return Offer(
        gpu=candidate.gpu,
        count=candidate.count,
        cloud=candidate.cloud,
        region=candidate.region,
        use_spot=candidate.use_spot,
        spot=None,
        on_demand=None,
        gpu_memory=gpu_memory(candidate.gpu) if candidate.gpu else None,
        disk_gb=candidate.disk_gb,
    )


def look_up(candidate: Candidate, num_nodes: int = 1, prices: Prices | None = None) -> Offer:
    """Return the cheapest machine for a candidate, or the one that nobody offers.

    The job's own `prices` override the catalog.
    """
    offer = unpriced(candidate)
    clouds = [candidate.resources.cloud] if candidate.cloud else enabled_clouds()
    note = None if clouds else "no cloud is enabled here"
    found, why = [], []
    for cloud in clouds:
        try:
            with quiet():
                answer = _cheapest(cloud, candidate, num_nodes, offer)
        except Exception as error:  # SkyPilot and its clouds raise all kinds of errors
            note = f"{cloud}'s catalog can't be read ({type(error).__name__})"
        else:
            if isinstance(answer, Offer):
                found.append(answer)
            else:
                why.append(answer)
    if not found and note is None:
        return NotOffered(**vars(offer) | {"note": "; ".join(why[:3])})
    offer = cheapest_first(found)[0] if found else replace(offer, note=note)
    everywhere = {place: price for there in found for place, price in there.elsewhere.items()}
    return _with_own_price(replace(offer, elsewhere=everywhere), prices or {})


def market(
    gpus: Sequence[str],
    prices: Prices | None = None,
    *,
    count: int = 1,
    other_counts: Sequence[int] = (),
) -> tuple[list[Offer], list[str]]:
    """Return the cheapest machine of `count` GPUs of each type, spot and on demand; and notes for
    the user. Where a catalog offers machines with one of `other_counts`, return these, too.

    `gpus` names the types. If it is empty, use all types with a price, or all known types if none
    has a price. A type that no catalog offers in that count has no price, unless the job sets one.
    Raises BadInput for an unknown name.
    """
    notes: list[str] = []
    by_name: dict[str, list[Any]] = {}
    try:
        sky_module()  # importing takes seconds, which should not count against the limit
        clouds, by_name = within(CATALOG_SECONDS, _whole_market)
        notes.append(f"prices: the cheapest region in SkyPilot's catalog of {', '.join(clouds)}")
    except BadInput as error:
        notes.append(str(error))
    except Exception as error:  # SkyPilot and its clouds raise all kinds of errors
        notes.append(f"SkyPilot's catalog can't be read ({type(error).__name__})")
    prices = prices or {}
    if prices:
        notes.append(f"prices of {', '.join(sorted(prices))}: the job's own")
    _require_known(gpus, sorted({*GPU_TYPES, *by_name, *prices}))
    fitting = {
        (gpu, number): found
        for gpu, infos in by_name.items()
        for number in (count, *other_counts)
        if (found := [info for info in infos if info.accelerator_count == number])
    }
    offered = {gpu for gpu, _ in fitting}
    priced = sorted(GPU_TYPES.keys() & {*offered, *prices})
    unpriced = by_name.keys() - offered - prices.keys()
    lacking = [gpu for gpu in gpus or sorted(GPU_TYPES) if gpu in unpriced]
    if lacking:
        numbers = " or ".join(map(str, sorted({count, *other_counts})))
        notes.append(f"not offered with {numbers} GPUs per machine: {', '.join(lacking)}")
    offers = []
    for gpu in gpus or priced or list(GPU_TYPES):
        others = (number for number in other_counts if (gpu, number) in fitting)
        for number, use_spot in product((count, *others), (True, False)):
            offer = _of_market(gpu, number, fitting.get((gpu, number), []), use_spot)
            offer = _with_own_price(offer, prices)
            if offer.price is not None or not use_spot:
                offers.append(offer)
    return offers, notes


def _require_known(gpus: Sequence[str], known: Sequence[str]) -> None:
    for gpu in gpus:
        if gpu not in known:
            hint = did_you_mean(gpu, known, f"known: {', '.join(known)}.")
            raise BadInput(
                f"--gpu {gpu}: SkyPilot has no GPU with that name. {hint[0].upper()}{hint[1:]}"
            )


def _whole_market() -> tuple[list[str], dict[str, list[Any]]]:
    """Return the clouds to compare and their GPUs: the enabled clouds, or else those whose catalog
    is on this disk."""
    from sky.catalog.common import get_catalog_path

    clouds = [str(cloud).lower() for cloud in enabled_clouds()]
    if not clouds:
        clouds = [path.parent.name for path in Path(get_catalog_path("")).glob("*/vms.csv")]
    clouds = sorted(cloud for cloud in clouds if cloud not in NO_CATALOG) or ["runpod"]
    with quiet():
        return clouds, _gpus_of(*clouds)


def _of_market(gpu: str, count: int, infos: Sequence[Any], use_spot: bool) -> Offer:
    """Return the cheapest machine of `count` GPUs in the catalogs' `infos`."""

    def price(info: Any, spot: bool) -> float | None:
        dollars = info.spot_price if spot else info.price
        return None if dollars is None or math.isnan(dollars) else float(dollars)

    found = [info for info in infos if price(info, use_spot) is not None]
    best = min(found, key=lambda info: price(info, use_spot) or 0.0, default=None)
    return Offer(
        gpu=gpu,
        count=count,
        cloud=best.cloud if best else None,
        region=best.region if best else None,
        use_spot=use_spot,
        spot=price(best, True) if best else None,
        on_demand=price(best, False) if best else None,
        gpu_memory=gpu_memory(gpu, best.device_memory if best else None),
        disk_gb=0,
    )


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
        return feasible.hint or _why_none(cloud, candidate, feasible.fuzzy_candidate_list)
    launchable = feasible.resources_list[0]
    prices = {
        place.name: _price(cloud, launchable, candidate.use_spot, place.name, candidate.zone)
        for place in launchable.get_valid_regions_for_launchable()
    }
    priced = [(price, name) for name, price in prices.items() if price is not None]
    if not priced:
        kind = "spot " if candidate.use_spot else ""
        return f"{cloud} lists no {kind}price for {candidate.gpu or launchable.instance_type}"
    price, region = min(priced)
    other = _price(cloud, launchable, not candidate.use_spot, region, candidate.zone)
    spot, on_demand = (price, other) if candidate.use_spot else (other, price)
    memory = offer.gpu_memory
    if memory is None and candidate.gpu is not None:
        infos = _gpus_of(str(cloud).lower(), name=candidate.gpu).get(candidate.gpu, [])
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


def _price(cloud: Any, launchable: Any, spot: bool, region: str, zone: str | None) -> float | None:
    try:
        price = cloud.instance_type_to_hourly_cost(
            launchable.instance_type, use_spot=spot, region=region, zone=zone
        )
        if launchable.accelerators:
            price += cloud.accelerators_to_hourly_cost(
                launchable.accelerators, use_spot=spot, region=region, zone=zone
            )
    except (ValueError, AssertionError):  # no such price, or the prices of zones differ
        return None
    return None if math.isnan(price) else float(price)


def _why_none(cloud: Any, candidate: Candidate, fuzzy: Sequence[str]) -> str:
    """Return why the cloud does not have the candidate: GPU name, count, region, or spot."""
    if candidate.gpu is None:
        return f"{cloud} has no machine of that size"
    by_name = _gpus_of(str(cloud).lower())
    infos = by_name.get(candidate.gpu)
    if infos is None and candidate.gpu in GPU_TYPES:
        return f"{cloud} has no {candidate.gpu}; it has {_listed(by_name)}"
    if infos is None:
        known = sorted({*by_name, *GPU_TYPES})
        hint = did_you_mean(candidate.gpu, known, f"it has {_listed(by_name)}")
        return f"{cloud} has no GPU called {candidate.gpu}; {hint}"
    here = [i for i in infos if candidate.region in (None, i.region)]
    if not here:
        regions = sorted({info.region for info in infos})
        return f"{cloud} has {candidate.gpu} in {_listed(regions)}, not in {candidate.region}"
    counts = sorted({int(info.accelerator_count) for info in here})
    if candidate.count not in counts:
        return f"{cloud} offers {candidate.gpu} only with {_listed(map(str, counts))} per machine"
    if candidate.use_spot and all(math.isnan(info.spot_price) for info in here):
        return f"{cloud} lists no spot price for {candidate.gpu}"
    return f"{cloud} has {candidate.gpu}, but not with the requested cpus and memory"


def _gpus_of(*clouds: str, name: str | None = None) -> dict[str, list[Any]]:
    """Return, for each GPU, what the catalogs of these clouds offer in every region."""
    sky_module()
    from sky import catalog

    return catalog.list_accelerators(
        gpus_only=True,
        name_filter=f"^{re.escape(name)}$" if name else None,
        clouds=list(clouds),
        all_regions=True,
    )


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
