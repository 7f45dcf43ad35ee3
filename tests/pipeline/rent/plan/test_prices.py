"""What machines cost: SkyPilot's own catalog, or the job's prices."""

import csv
import re

import pytest
import yaml

from pion.errors import BadInput
from pipeline.job import Job, Price
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.rent.plan.prices import look_up, market, of_rental
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import JOBS
from tests.pipeline.rent.plan.rows import rows_of
from tests.support import sky_catalog

SMALL = JOBS / "pion-small.yaml"


def also(sky_home, gpu, price, **fields):
    """Let RunPod also offer a machine like that of this GPU, with other fields of the catalog."""
    import sky.catalog.runpod_catalog
    from sky.catalog import common

    path = sky_home.folder / ".sky/catalogs/v8/runpod/vms.csv"
    with path.open() as file:
        machine = next(row for row in csv.DictReader(file) if row["AcceleratorName"] == gpu)
    prices = {"SpotPrice": str(price.spot), "Price": str(price.on_demand)}
    with path.open("a", newline="") as file:
        csv.DictWriter(file, list(machine)).writerow(machine | prices | fields)
    machines = common.read_catalog("runpod/vms.csv")
    sky_home.patch.setattr(sky.catalog.runpod_catalog, "_df", machines)
    sky_home.answers.clear()


def also_by_four(sky_home, gpu, price):
    """Let RunPod also offer machines with four such GPUs, at `price` for all four."""
    also(sky_home, gpu, price, InstanceType=f"4x_{gpu}_SECURE", AcceleratorCount="4.0")


# ---------------------------------------------------------------- a machine of a rental


@rows_of("machines")
def test_a_machine_has_the_price_of_what_would_be_rented_or_the_reason_why_not(sky_home, row):
    prices = {"A40": (0.2, 0.4), "L40S": (None, 0.9), "RTXA2000": (0.1, 0.2)}
    sky_home.sell({gpu: sky_catalog.Price(*price) for gpu, price in prices.items()})
    (candidate,) = read_sky_yaml(sky_home.yaml(yaml.safe_dump(row["resources"]))).candidates
    offer = look_up(candidate, row.get("nodes", 1))
    gib = (offer.gpu_memory or 0) // 2**30
    assert offer.disk_gb == 60
    assert offer.price == (offer.spot if offer.use_spot else offer.on_demand)
    assert row["says"] in f"{offer}: {offer.spot}, {offer.on_demand}, {gib} GiB, {offer.note}"


def test_a_catalog_that_can_not_be_read_is_said_once(sky_home):
    sky_home.lose_catalog()
    path = sky_home.yaml("any_of: [{accelerators: A40}, {accelerators: L4}, {accelerators: T4}]")
    _, notes, _ = of_rental(load_job(SMALL), str(path))
    (note,) = [note for note in notes if "read" in note]
    assert note.startswith("1 × A40 on demand on RunPod, 1 × L4")


# ---------------------------------------------------------------- the market


@rows_of("market")
def test_the_market_has_the_cheapest_machine_of_each_kind(sky_home, row):
    sky_home.sell({"A40": sky_catalog.Price(0.2, 0.4), "L40S": sky_catalog.Price(None, 0.9)})
    also(sky_home, "A40", sky_catalog.Price(0.3, 0.35), Region="CZ", AvailabilityZone="EU-CZ-1")
    also_by_four(sky_home, "A40", sky_catalog.Price(0.7, 1.5))
    prices = {gpu: Price(spot, None) for gpu, spot in row.get("prices", {}).items()}
    offers, notes = market(row["gpus"], prices, counts=row["counts"])
    assert [(str(offer), offer.price) for offer in offers] == [*row["offers"].items()]
    read = "prices: the cheapest region in SkyPilot's catalog of runpod"
    assert notes == [read, *row["notes"]]


def test_the_market_refuses_a_gpu_nobody_knows(sky_home):
    with pytest.raises(BadInput, match=r"--gpu A4O: SkyPilot has no GPU .*Did you mean A40"):
        market(["A4O"])


def test_offline_the_market_goes_by_the_jobs_prices_alone(sky_home):
    sky_home.lose_catalog()
    offers, notes = market([], {"A40": Price(0.2, 0.4)})
    assert {(o.gpu, o.price) for o in offers} == {("A40", 0.2), ("A40", 0.4)}
    assert any("catalog can't be read" in note for note in notes)
    offers, _ = market([])
    assert all(offer.price is None for offer in offers)
    assert {"T4", "H100"} < {offer.gpu for offer in offers}


# ---------------------------------------------------------------- a job's own prices


def test_a_job_states_prices_and_they_never_make_a_finished_stage_stale():
    job = load_job(SMALL, ["prices={A40: 0.4, L40S: {spot: 0.5}}"])
    assert job.prices == {"A40": Price(0.4, 0.4), "L40S": Price(0.5, None)}
    assert Job.model_validate_json(job.model_dump_json()).prices == job.prices
    assert digest_job(job) == digest_job(load_job(SMALL))


@rows_of("wrong_prices")
def test_an_invalid_price_is_refused(row):
    with pytest.raises(BadInput, match=re.escape(row["says"])):
        load_job(SMALL, [f"prices={row['prices']}"])
