"""What machines cost, by SkyPilot's lists on this disk, which are read without SkyPilot."""

import os
import subprocess
import sys

import pytest

from pipeline.new.price import FRESH_SECONDS, listed_offers
from pipeline.rent.plan.prices import market
from tests.support.sky_catalog import PRICES, Price, write_catalog


def test_the_lists_say_what_skypilot_says(sky_home):
    sky_home.sell(PRICES | {"A40": Price(0.2, None), "L4": Price(None, 0.4)})
    offers = [offer for offer in market(())[0] if offer.price is not None]
    assert sorted(offers, key=str) == sorted(listed_offers(), key=str)


def test_the_cheapest_cloud_counts_and_an_old_list_does_not(sky_home):
    write_catalog(
        sky_home.folder, {"A40": Price(0.1, 0.5), "RTXA2000": Price(0.01, 0.01)}, cloud="AWS"
    )
    by_machine = {(offer.gpu, offer.use_spot): str(offer) for offer in listed_offers()}
    assert by_machine["A40", True] == "1 × A40 spot on AWS/CA"
    assert by_machine["A40", False] == "1 × A40 on demand on RunPod/CA"
    assert ("RTXA2000", True) not in by_machine
    lists = [*(sky_home.folder / ".sky/catalogs/v8").glob("*/vms.csv")]
    for file in lists:
        os.utime(file, (0, file.stat().st_mtime - FRESH_SECONDS - 1))
    assert listed_offers() == []
    lists[0].write_text("AcceleratorName\nA40\n")
    assert listed_offers() == []


HEAVY = {"sky", "ray", "transformers", "datasets", "pandas"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("pipeline.new.command", HEAVY | {"torch"}), ("pipeline.new.price", HEAVY)],
)
def test_what_takes_seconds_to_import_is_not(module, heavy):
    code = f"import sys, {module}; print(*sys.modules.keys() & {heavy})"
    assert not subprocess.check_output([sys.executable, "-c", code], text=True).split()
