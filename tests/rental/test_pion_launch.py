"""`pion launch` with a real SkyPilot: it rents, shows the run to its end, and never rents twice."""

import json

import pytest
import yaml

from pipeline.rent.managed.names import rental_name
from pipeline.state.notes.rental_note import read_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.paths import REPOSITORY
from tests.rental.loopback_runpod import rent
from tests.rental.rented import ENDLESS, JOB, OVERRIDES, RUN, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental

A40 = ("--on", "sky/runpod-a40.yaml")
SPOT = ("--on", "sky/runpod-spot.yaml")


def test_a_launch_shows_the_run_to_its_end_and_its_one_machine_is_gone_then(rented):
    overrides = [f"store={rented.store}", *OVERRIDES]
    with window(rented, "launch", JOB, *SPOT, *overrides) as launch:
        job = launch.job
        with window(rented, "launch", JOB, *SPOT, *overrides) as second:
            second.ends_with(2)
            assert f"{RUN} is already rented: managed job {job}" in second.text
        with window(rented, "watch", rented.run) as watch:  # before any machine has claimed it
            watch.wait_for(f"managed job {job}: ")
            watch.ctrl_c()
            watch.ends_with(0)
            assert f"follow it:  pion watch {rented.run}" in watch.text
        launch.ends_with(0)
        assert f"managed job {job}: RUNNING on RunPod" in launch.text
        assert "owns the run" in launch.text
        assert f"managed job {job} is done" in launch.text
    (pod,) = rented.machines
    assert (pod.gpu, pod.use_spot) == ("NVIDIA A40", True), "the cheapest GPU of the file"
    wait_until(lambda: not pod.alive, "the end of the machine")
    with window(rented, "rentals", rented.run, "--json") as rentals:
        rentals.ends_with(0)
        (machine,) = json.loads(rentals.text)["rentals"]
    assert (machine["id"], machine["state"], machine["job"]) == (pod.id, "gone", job)
    assert machine["dollars"] > 0


def test_a_machine_that_costs_more_than_the_file_allows_is_ended_and_not_replaced(rented, tmp_path):
    config = yaml.safe_load((REPOSITORY / "sky" / "runpod-a40.yaml").read_text())
    config["resources"]["max_hourly_cost"] = 0.45  # the A40 costs 0.40 in the price list
    limited = tmp_path / "limited.yaml"
    limited.write_text(yaml.safe_dump(config))
    rented.loopback.runpod.times_dearer = 1.15
    with window(
        rented, "launch", JOB, "--on", limited, f"store={rented.store}", *OVERRIDES
    ) as launch:
        launch.wait_for("costs $0.46 per hour, 1.15 times the planned $0.40")
        launch.ends_with(4)
    (pod,) = rented.machines
    assert "max_hourly_cost of the SkyPilot file is 0.45. Nothing was started" in pod.job_log()
    wait_until(lambda: not pod.alive, "the end of the machine")


def test_no_other_computer_rents_while_a_lost_machine_is_replaced(rented):
    state = RunState(open_store(rented.store), RUN)
    overrides = [f"store={rented.store}", ENDLESS, *OVERRIDES]
    with window(rented, "launch", JOB, *A40, *overrides) as launch:
        pod = rented.wait_for_training()
        rented.loopback.runpod.sold_out = {pod.gpu}
        rented.loopback.runpod.preempt(pod)
        wait_until(lambda: rented.head().owner is None, "the run to be released")
        elsewhere = {"SKYPILOT_USER_ID": "0badcafe"}  # its SkyPilot does not see the job
        with window(rented, "launch", JOB, *SPOT, *overrides, **elsewhere) as second:
            second.ends_with(2)
            assert "SkyPilot there is waiting for a machine, or replacing a lost" in second.text
            assert f"pion hop {rented.run} --on SKY" in second.text
        assert read_rental_note(state)[0] is not None
        rented.loopback.sky("jobs", "cancel", "-y", str(launch.job))
        launch.ends_with(1)
    assert read_rental_note(state)[0] is None
    assert rented.machines == [pod]


def test_reap_ends_an_orphan_by_the_hash_of_this_skypilot_and_leaves_other_users_alone(rented):
    for user in (rented.loopback.user_hash, "0badcafe"):
        cluster = f"{rental_name(rented.store, RUN)}-999-{user}"
        rented.loopback.runpod.answer(rent("sleep 1000", f"{cluster}-head"))
    orphan, strangers = rented.machines
    with window(rented, "rentals", rented.run, "--reap") as rentals:
        rentals.ends_with(0)
        assert "gone: terminated now" in rentals.text
        assert "rented from another machine; check there" in rentals.text
    assert (orphan.alive, strangers.alive) == (False, True)
