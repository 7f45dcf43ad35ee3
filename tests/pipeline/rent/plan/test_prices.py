"""What machines cost: SkyPilot's own catalog, or the job's prices."""

import csv
import re

import pytest

from pion.errors import BadInput
from pipeline.job import Job, Price
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.rent.plan.prices import look_up, market
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import JOBS
from tests.support import sky_catalog


def asked(sky_home, resources, nodes=1):
    """Look up the only candidate of a YAML."""
    (candidate,) = read_sky_yaml(sky_home.yaml(resources)).candidates
    return look_up(candidate, nodes)


@pytest.mark.parametrize(
    ("resources", "machine", "price"),
    [
        ("accelerators: A40\nuse_spot: true", "1 × A40 spot on RunPod/CA", 0.20),
        ("accelerators: A40", "1 × A40 on demand on RunPod/CA", 0.40),
    ],
)
def test_an_offer_has_the_price_of_what_would_be_rented(sky_home, resources, machine, price):
    offer = asked(sky_home, resources)
    assert (str(offer), offer.price) == (machine, price)
    assert (offer.spot, offer.on_demand, offer.disk_gb) == (0.20, 0.40, 60)


def test_an_offer_has_the_memory_that_cuda_reports_and_not_what_is_advertised(sky_home):
    sky_home.sell({gpu: sky_catalog.Price(0.1, 0.2) for gpu in ("A40", "RTXA2000")})
    assert 44 * 2**30 < asked(sky_home, "accelerators: A40").gpu_memory < 45 * 2**30
    unknown = asked(sky_home, "accelerators: RTXA2000")
    assert unknown.gpu_memory == int(6 * 0.92 * 2**30), "the catalog's, less what CUDA keeps"


@pytest.mark.parametrize(
    ("resources", "nodes", "why"),
    [
        ("accelerators: A40:4", 1, "offers A40 only with 1 per machine"),
        ("any_of: [{infra: runpod/SE, accelerators: A40}]", 1, "has A40 in CA, not in SE"),
        ("accelerators: L40S\nuse_spot: true", 1, "no spot price for L40S"),
        ("accelerators: T4", 1, "RunPod has no T4; it has A40"),
        ("accelerators: A4O:1", 1, "has no GPU called A4O; did you mean A40"),
        ("accelerators: A40", 2, "Multi-node not supported"),  # in SkyPilot's words
        ("any_of: [{infra: '*', accelerators: A40}]", 1, "no cloud is enabled here"),
    ],
)
def test_the_reason_names_what_the_cloud_lacks(sky_home, resources, nodes, why):
    prices = {"A40": sky_catalog.Price(0.2, 0.4), "L40S": sky_catalog.Price(None, 0.9)}
    sky_home.sell(prices)
    assert why in asked(sky_home, resources, nodes=nodes).note


def test_the_market_has_each_gpu_spot_and_on_demand_where_it_is_cheapest(sky_home):
    sky_home.sell({"A40": sky_catalog.Price(0.2, 0.4), "L40S": sky_catalog.Price(None, 0.9)})
    offers, notes = market([])
    assert {(o.gpu, o.use_spot, o.price) for o in offers} == {
        ("A40", True, 0.2),
        ("A40", False, 0.4),
        ("L40S", False, 0.9),
    }
    assert "prices: the cheapest region in SkyPilot's catalog of runpod" in notes


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


def test_spot_and_on_demand_are_each_taken_where_they_are_cheapest(sky_home):
    also(sky_home, "A40", sky_catalog.Price(0.3, 0.35), Region="CZ", AvailabilityZone="EU-CZ-1")
    offers, _ = market(["A40"])
    assert [(str(o), o.price) for o in offers] == [
        ("1 × A40 spot on RunPod/CA", 0.2),
        ("1 × A40 on demand on RunPod/CZ", 0.35),
    ]


def test_the_market_of_four_gpus_has_machines_of_four_at_their_own_price(sky_home):
    also_by_four(sky_home, "A40", sky_catalog.Price(0.7, 1.5))
    offers, notes = market([], count=4)
    assert {(str(o), o.price) for o in offers} == {
        ("4 × A40 spot on RunPod/CA", 0.7),
        ("4 × A40 on demand on RunPod/CA", 1.5),
    }
    (lacking,) = [note for note in notes if "not offered with 4 GPUs per machine" in note]
    assert "L40S" in lacking
    assert "A40," not in lacking
    offers, _ = market(["L40S"], count=4)
    assert [(o.count, o.price) for o in offers] == [(4, None)]
    offers, _ = market(["L40S"], {"L40S": Price(0.5, None)}, count=4)
    assert offers[0].price == 2.0, "a job's prices are of one GPU"


def test_the_market_has_machines_with_other_numbers_of_gpus_where_they_are_offered(sky_home):
    also_by_four(sky_home, "A40", sky_catalog.Price(0.7, 1.5))
    offers, notes = market(["A40", "L40S"], other_counts=(2, 4, 8))
    assert [(o.count, o.price) for o in offers if o.gpu == "A40" and o.use_spot] == [
        (1, 0.2),
        (4, 0.7),
    ]
    assert {o.count for o in offers if o.gpu == "L40S"} == {1}
    assert not any("not offered" in note for note in notes)
    own = {"A40": Price(0.1, None), "L40S": Price(0.5, None)}
    offers, _ = market(["A40", "L40S"], own, other_counts=(2, 4, 8))
    priced = [(o.gpu, o.count, o.price) for o in offers if o.use_spot]
    assert priced == [("A40", 1, 0.1), ("A40", 4, 0.4), ("L40S", 1, 0.5)]


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


SMALL = JOBS / "pion-small.yaml"


def test_a_job_states_one_price_or_one_for_each_way_of_renting():
    job = load_job(SMALL, ["prices={A40: 0.4, L40S: {spot: 0.5}}"])
    assert job.prices == {"A40": Price(0.4, 0.4), "L40S": Price(0.5, None)}
    assert Job.model_validate_json(job.model_dump_json()).prices == job.prices


def test_prices_never_make_a_finished_stage_stale():
    assert digest_job(load_job(SMALL, ["prices.A40=9"])) == digest_job(load_job(SMALL))


@pytest.mark.parametrize(
    ("prices", "words"),
    [
        ("{A40: yes}", "A40: True is not an amount in dollars per hour"),
        ("{A40: -1}", "A40: -1 is not an amount"),
        ("{A40: {spot: .inf}}", "A40: inf is not an amount"),
        ("{A40: {sopt: 1}}", "A40: unknown key 'sopt'; the keys are spot, on_demand"),
        ("[A40]", "should be a section"),
    ],
)
def test_an_invalid_price_is_refused(prices, words):
    with pytest.raises(BadInput, match=re.escape(words)):
        load_job(SMALL, [f"prices={prices}"])
