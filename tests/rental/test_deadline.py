"""A run with a deadline, with a real SkyPilot: on demand when time gets short, and back to spot."""

import json
import time

import pytest

from pipeline.machine.rented import RENTED
from pipeline.state.rows.metrics import read_events
from pipeline.state.stores import open_store
from tests.rental.rented import JOB, OVERRIDES, RUN, wait_until
from tests.rental.window import window
from tests.support.sky_catalog import PRICES

pytestmark = pytest.mark.rental

# By the estimated speed of an A40, an hour of work. These pods need weeks for it.
STEPS = "pretrain.steps=327000"
# With machines that live for six minutes, 87 minutes of slack are kept in reserve. The deadline
# leaves a minute or two more.
LIVES, DEADLINE = "checkpoint.preemption_hours=0.1", "deadline.hours=2.56"


def test_on_demand_claims_without_spot_and_spot_relieves_it_though_the_watcher_was_killed(rented):
    runpod = rented.loopback.runpod
    runpod.no_spot = True
    overrides = [f"store={rented.store}", *OVERRIDES, STEPS, LIVES, DEADLINE]
    on = ("--on", "sky/runpod-deadline.yaml")
    with window(rented, "launch", JOB, *on, *overrides) as launch:
        first = launch.job
        launch.wait_for("spot may be waited for until")
        launch.wait_for("and the reserve is reached: renting A40")
        launch.wait_for("requested a machine on demand")
        on_demand = rented.wait_for_training(saves=2)
        assert not on_demand.use_spot
        assert on_demand.gpu == "NVIDIA A40", "the cheapest on demand"
        launch.wait_for("requested a machine on spot")
        assert f"cancelled managed job {first}" in launch.text
        launch.process.kill()  # nobody watches any more
    committed = rented.head().checkpoints[0].step
    runpod.no_spot = False
    spot = rented.wait_for_training(machine=1)
    assert spot.use_spot
    with window(rented, "watch", rented.run) as watch:
        wait_until(lambda: not on_demand.alive, "the end of the machine on demand")
        watch.wait_for("of work on demand; ")
        with window(rented, "status", rented.run) as status:
            status.ends_with(0)
            assert "deadline: " in status.text
            assert "watched by" in status.text
        with window(rented, "rentals", rented.run, "--json") as rentals:
            rentals.ends_with(0)
            listed = {m["id"]: m for m in json.loads(rentals.text)["rentals"]}
        with window(rented, "stop", rented.run) as stop:
            stop.ends_with(0)
        watch.ends_with(4)
    wait_until(lambda: not spot.alive, "the end of the spot machine")
    assert rented.machines == [on_demand, spot]
    (from_step, row), (step, next_row) = rented.rows_trained()
    assert (from_step, row) == (0, 0)
    assert step >= committed > 0, "a committed step was lost"
    assert next_row == 8 * step, "rows were skipped or repeated"
    events = list(read_events(open_store(rented.store), RUN))
    a40 = PRICES["A40"]
    for pod, price in ((on_demand, a40.on_demand), (spot, a40.spot)):
        assert {e["price"] for e in events if e["event"] == RENTED and e["id"] == pod.id} == {price}
        machine = listed[pod.id]
        hours = ((machine["end"] or time.time()) - machine["begin"]) / 3600
        assert machine["dollars"] == pytest.approx(hours * (price or 0.0), rel=0.1)
    watched = [e for e in events if e["event"] == "watch" and e["what"] == "deadline"]
    done = [words for e in watched for words in e["done"]]
    # Until a machine has claimed the run, nothing can be recorded in it.
    assert any("requested a machine on spot as managed job" in words for words in done)
