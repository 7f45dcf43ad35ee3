"""What machines cost: SkyPilot's own catalog, or the job's prices."""

import csv
import re

import pytest

from pion.errors import BadInput
from pipeline.job import Job, Price
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.rent.plan.prices import look_up, market, of_rental
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import JOBS
from tests.support import sky_catalog

SMALL = JOBS / "pion-small.yaml"
A40 = Price(0.1, None)
L40S = Price(0.5, None)


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


@pytest.mark.parametrize(
    ("resources", "nodes", "said"),
    [
        ("accelerators: A40\nuse_spot: true", 1, "1 × A40 spot on RunPod/CA: 0.2, 0.4, 44 GiB"),
        ("accelerators: A40", 1, "1 × A40 on demand on RunPod/CA: 0.2, 0.4, 44 GiB"),
        # The memory that CUDA reports, and not what is advertised: the catalog's, less its share.
        ("accelerators: RTXA2000", 1, "RTXA2000 on demand on RunPod/CA: 0.1, 0.2, 5 GiB"),
        ("accelerators: A40:4", 1, "offers A40 only with 1 per machine"),
        ("any_of: [{infra: runpod/SE, accelerators: A40}]", 1, "has A40 in CA, not in SE"),
        ("accelerators: L40S\nuse_spot: true", 1, "no spot price for L40S"),
        ("accelerators: T4", 1, "RunPod has no T4; it has A40"),
        ("accelerators: A4O:1", 1, "has no GPU called A4O; did you mean A40"),
        ("accelerators: A40", 2, "Multi-node not supported"),  # in SkyPilot's words
        ("any_of: [{infra: '*', accelerators: A40}]", 1, "no cloud is enabled here"),
    ],
)
def test_a_machine_has_the_price_of_what_would_be_rented_or_the_reason_why_not(
    sky_home, resources, nodes, said
):
    prices = {"A40": (0.2, 0.4), "L40S": (None, 0.9), "RTXA2000": (0.1, 0.2)}
    sky_home.sell({gpu: sky_catalog.Price(*price) for gpu, price in prices.items()})
    (candidate,) = read_sky_yaml(sky_home.yaml(resources)).candidates
    offer = look_up(candidate, nodes)
    gib = (offer.gpu_memory or 0) // 2**30
    assert offer.disk_gb == 60
    assert offer.price == (offer.spot if offer.use_spot else offer.on_demand)
    assert said in f"{offer}: {offer.spot}, {offer.on_demand}, {gib} GiB, {offer.note}"


def test_a_catalog_that_can_not_be_read_is_said_once(sky_home):
    sky_home.lose_catalog()
    path = sky_home.yaml("any_of: [{accelerators: A40}, {accelerators: L4}, {accelerators: T4}]")
    _, notes, _ = of_rental(load_job(SMALL), str(path))
    (note,) = [note for note in notes if "read" in note]
    assert note.startswith("1 × A40 on demand on RunPod, 1 × L4")


# ---------------------------------------------------------------- the market

SPOT, DEMAND = ("1 × A40 spot on RunPod/CA", 0.2), ("1 × A40 on demand on RunPod/CZ", 0.35)
SPOT_OF_4 = ("4 × A40 spot on RunPod/CA", 0.7)
DEMAND_OF_4 = ("4 × A40 on demand on RunPod/CA", 1.5)
ONE_L40S = ("1 × L40S on demand on RunPod/CA", 0.9)
READ = ["prices: the cheapest region in SkyPilot's catalog of runpod"]
LACKING = "not offered with 4 GPUs per machine: L40S"


@pytest.mark.parametrize(
    ("gpus", "prices", "counts", "offers", "notes"),
    [
        # Spot and on demand are each taken where they are cheapest.
        ([], {}, (1,), [SPOT, DEMAND, ONE_L40S], []),
        # Machines of four have their own price.
        ([], {}, (4,), [SPOT_OF_4, DEMAND_OF_4], [LACKING]),
        (["L40S"], {}, (4,), [("4 × L40S on demand on any cloud", None)], [LACKING]),
        # A job's prices are of one GPU.
        (
            ["L40S"],
            {"L40S": L40S},
            (4,),
            [("4 × L40S spot on any cloud", 2.0), ("4 × L40S on demand on any cloud", None)],
            ["prices of L40S: the job's own"],
        ),
        # Machines with other numbers of GPUs are there where they are offered.
        (
            ["A40", "L40S"],
            {},
            (1, 2, 4, 8),
            [SPOT, DEMAND, SPOT_OF_4, DEMAND_OF_4, ONE_L40S],
            [],
        ),
        (
            ["A40", "L40S"],
            {"A40": A40, "L40S": L40S},
            (1, 2, 4, 8),
            [
                ("1 × A40 spot on RunPod/CA", 0.1),
                ("1 × A40 on demand on RunPod/CZ", None),
                ("4 × A40 spot on RunPod/CA", 0.4),
                ("4 × A40 on demand on RunPod/CA", None),
                ("1 × L40S spot on any cloud", 0.5),
                ("1 × L40S on demand on RunPod/CA", None),
            ],
            ["prices of A40, L40S: the job's own"],
        ),
    ],
)
def test_the_market_has_the_cheapest_machine_of_each_kind(
    sky_home, gpus, prices, counts, offers, notes
):
    sky_home.sell({"A40": sky_catalog.Price(0.2, 0.4), "L40S": sky_catalog.Price(None, 0.9)})
    also(sky_home, "A40", sky_catalog.Price(0.3, 0.35), Region="CZ", AvailabilityZone="EU-CZ-1")
    also_by_four(sky_home, "A40", sky_catalog.Price(0.7, 1.5))
    there, about = market(gpus, prices, counts=counts)
    assert [(str(offer), offer.price) for offer in there] == offers
    assert about == [*READ, *notes]


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
    assert job.prices == {"A40": Price(0.4, 0.4), "L40S": L40S}
    assert Job.model_validate_json(job.model_dump_json()).prices == job.prices
    assert digest_job(job) == digest_job(load_job(SMALL))


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
