"""`pion hop` with a real SkyPilot: to another GPU with another micro-batch, and nothing is lost."""

import pytest

from tests.rental.rented import ENDLESS, JOB, OVERRIDES, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental

A40 = ("--on", "sky/runpod-a40.yaml")
A4000 = ("--on", "sky/runpod-a4000.yaml")


def test_a_run_hops_to_another_gpu_and_only_then_is_the_old_machine_ended(rented):
    overrides = [f"store={rented.store}", ENDLESS, *OVERRIDES]
    with window(rented, "launch", JOB, *A40, *overrides) as launch:
        old = rented.wait_for_training()
        with window(rented, "hop", rented.run, *A4000, "hardware.micro_batch=2") as hop:
            wait_until(lambda: len(rented.machines) > 1, "the new machine")
            assert old.alive, "the old machine was ended before the new one was up"
            hop.ends_with(0)
            for words in (
                f"managed job {launch.job} continues until the new machine is up",
                "has taken over the run",
                f"managed job {launch.job} has stopped, and its pod ",  # is gone, or was terminated
                "micro_batch × grad_accum × workers: 8×1×1 → 2×4×1, 512 tokens per step as before",
                "= last + 1",
            ):
                assert words in hop.text
            assert "ALARM" not in hop.text
            launch.wait_for(f"managed job {hop.job}: RUNNING")  # the window follows the run
        _, new = rented.machines
        assert (old.gpu, new.gpu) == ("NVIDIA A40", "NVIDIA RTX A4000")
        assert not old.alive
        (_, _), (step, row) = rented.rows_trained()
        assert row == 8 * step > 0
        with window(rented, "stop", rented.run) as stop:
            stop.ends_with(0)
        launch.ends_with(4)


def test_a_hop_that_finds_no_machine_leaves_the_old_one_training(rented):
    overrides = [f"store={rented.store}", ENDLESS, *OVERRIDES]
    with window(rented, "launch", JOB, *A40, *overrides) as launch:
        old = rented.wait_for_training()
        rented.loopback.runpod.sold_out = {"NVIDIA RTX A4000"}
        with window(rented, "hop", rented.run, *A4000) as hop:
            wait_until(lambda: asked_for(rented, "NVIDIA RTX A4000"), "SkyPilot to find none")
            saves = old.job_log().count(": saved")
            wait_until(lambda: old.job_log().count(": saved") > saves + 1, "more saves")
            rented.loopback.sky("jobs", "cancel", "-y", str(hop.job))
            hop.ends_with(1)
            assert "stopped before it took over the run" in hop.text
            assert "and continues" in hop.text
        assert rented.machines == [old]
        assert old.alive
        assert launch.process.poll() is None


def asked_for(rented, gpu):
    """Return whether SkyPilot has tried to rent that GPU."""
    queries = [query for _, query in rented.loopback.runpod.requests]
    return any("podFindAndDeployOnDemand" in query and gpu in query for query in queries)
