"""In which order SkyPilot is told to try the machines of a YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.rent.managed.cheapest_first import WANTED
from pipeline.rent.managed.task import make_task, task_config
from pipeline.rent.rental import read_rental
from tests.pipeline.rent.conftest import SkyHome
from tests.rental.catalog import Price

REPOSITORY = Path(__file__).parents[3]
LISTED = """ordered:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA4000}
  - {accelerators: RTXA5000, use_spot: true}"""
TODAY = {"A40": Price(0.5, 0.9), "RTXA4000": Price(0.3, 0.1), "RTXA5000": Price(0.2, 0.4)}


def order(path: Path) -> list[tuple[str, bool]]:
    """GPU and whether spot, as SkyPilot's own loader reads the task that it is sent."""
    rental = read_rental(path)
    envs = {"JOB": "jobs/tiny.yaml"}
    task = make_task(task_config(rental, "pion-tiny", envs), {})
    assert isinstance(task.resources, list), "SkyPilot keeps no order of a set"
    return [(next(iter(found.accelerators)), found.use_spot) for found in task.resources]


def test_alternatives_are_tried_spot_first_and_by_todays_price(sky_home: SkyHome) -> None:
    sky_home.sell(TODAY)
    any_of = sky_home.yaml(LISTED.replace("ordered", "any_of"))
    assert order(any_of) == [("RTXA5000", True), ("A40", True), ("RTXA4000", False)]


def test_somebodys_own_order_is_kept(sky_home: SkyHome) -> None:
    sky_home.sell(TODAY)
    assert order(sky_home.yaml(LISTED)) == [("A40", True), ("RTXA4000", False), ("RTXA5000", True)]


def test_what_nobody_prices_or_offers_comes_last(sky_home: SkyHome) -> None:
    sky_home.sell({"A40": Price(None, 0.9), "RTXA5000": Price(0.2, 0.4)})
    any_of = sky_home.yaml("any_of:\n  - {accelerators: A40}\n  - {accelerators: RTXA5000}")
    assert order(any_of) == [("RTXA5000", False), ("A40", False)]
    spot = "any_of:\n  - {accelerators: A40, use_spot: true}\n  - {accelerators: RTXA5000}"
    assert order(sky_home.yaml(spot))[-1] == ("RTXA5000", False)


@pytest.mark.parametrize("name", ["runpod-spot.yaml", "cloud-spot.yaml"])
def test_our_lists_of_usual_prices_follow_todays(sky_home: SkyHome, name: str) -> None:
    prices = {"A40": Price(0.5, 0.9), "RTXA5000": Price(0.1, 0.4), "L40S": Price(0.3, 0.8)}
    sky_home.sell(prices)
    rental = read_rental(REPOSITORY / "sky" / name)
    assert rental.envs[WANTED] == "1"
    priced = [gpu for gpu, _ in order(REPOSITORY / "sky" / name) if gpu in prices]
    if name == "runpod-spot.yaml":
        assert priced == ["RTXA5000", "L40S", "A40"]


def test_everything_else_of_the_yaml_stays(sky_home: SkyHome) -> None:
    sky_home.sell(TODAY)
    rental = read_rental(REPOSITORY / "sky" / "runpod-spot.yaml")
    task = make_task(task_config(rental, "pion-tiny", {"JOB": "jobs/tiny.yaml"}), {})
    assert len(task.resources) == len(rental.candidates)
    for found in task.resources:
        assert str(found.cloud) == "RunPod"
        assert found.disk_size == 60
        assert found.job_recovery["recover_on_exit_codes"] == [75]
