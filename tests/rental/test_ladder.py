"""`pion ladder --on` with a real SkyPilot: one machine after the other works through all runs."""

from __future__ import annotations

import json

import pytest

from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.rental.rented import JOB, OVERRIDES, Rented, wait_until
from tests.rental.skypilot_home import REPOSITORY
from tests.rental.window import window

pytestmark = pytest.mark.rental

SPOT = ("--on", "sky/runpod-spot.yaml")
GRID = ("--widths", "0.5,1,2", "--tokens", "0.05,0.1,0.2", "--hours", "2")


def test_a_lost_machine_is_replaced_and_the_ladder_is_shown_at_its_end(rented: Rented) -> None:
    overrides = [f"store={rented.store}", *OVERRIDES, "evaluate.final_rows=16"]
    state = RunState(open_store(rented.store), "rental-test-ladder")
    with window(rented, "ladder", JOB, *GRID, *SPOT, *overrides, "--json") as ladder:
        pod = rented.wait_for_machine(0)
        wait_until(lambda: "run 2 of 9" in pod.job_log(), "the second run")
        rented.loopback.runpod.preempt(pod, notice=0.0, leaves="gone")
        ladder.ends_with(0)
        text = ladder.text
    assert "recovered 1 time" in text
    found = json.loads(text[text.rindex("\n{\n") :])
    (REPOSITORY / found["page"]).unlink()  # it was written where the command ran
    assert found["fit"] is not None
    assert all(run["bits_per_byte"] for run in found["runs"])
    assert len(rented.machines) == 2
    head = state.read()
    assert head is not None
    assert head.runs is not None
    assert head.runs.result == {"finished": True}
    wait_until(lambda: not any(pod.alive for pod in rented.machines), "the end of the machines")
    with window(rented, "rentals", state.url, "--json") as rentals:
        rentals.ends_with(0)
        listed = json.loads(rentals.text)["rentals"]
    assert {machine["id"] for machine in listed} == {pod.id for pod in rented.machines}
    assert {machine["state"] for machine in listed} == {"gone"}
    assert sum(machine["dollars"] for machine in listed) > 0
