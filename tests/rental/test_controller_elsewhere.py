"""SkyPilot's server, with its controller, is on another machine: laptops are its clients.

Here they are homes of their own, whose commands reach the server at a port of loopback, as through
ssh's.
"""

import dataclasses
import json

import pytest

from tests.rental.rented import JOB, OVERRIDES, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental


def test_while_every_laptop_is_off_a_lost_machine_is_replaced_and_any_laptop_can_watch(rented):
    first, second = (
        dataclasses.replace(rented, loopback=rented.loopback.laptop(name)) for name in ("a", "b")
    )
    settings = ["--on", "sky/runpod-spot.yaml", f"store={rented.store}", *OVERRIDES]
    with window(first, "launch", JOB, *settings) as launch:
        lost = rented.wait_for_training()
        launch.ctrl_c()
        launch.ends_with(0)
        print(launch.text)
    rented.loopback.runpod.preempt(lost)
    rented.wait_for_machine(1)
    with window(second, "watch", rented.run) as watch:
        watch.ends_with(0)
        print(watch.text)
        assert "recovered 1 time" in watch.text
    wait_until(lambda: not rented.machines[-1].alive, "the end of the machine")
    with window(first, "rentals", rented.run, "--json") as rentals:
        rentals.ends_with(0)
        machines = json.loads(rentals.text)["rentals"]
    assert [machine["state"] for machine in machines] == ["gone", "gone"]
    for laptop in (first, second):
        assert not (laptop.loopback.home / ".sky/api_server").exists(), "it has a server of its own"
