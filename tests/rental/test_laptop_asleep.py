"""A rental whose laptop sleeps: without SkyPilot's server, nobody replaces or ends a machine."""

import time

import pytest

from tests.rental.rented import JOB, OVERRIDES, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental


def test_a_machine_that_is_left_alone_finishes_the_run_and_ends_itself(rented):
    settings = [f"store={rented.store}", *OVERRIDES]
    with window(rented, "launch", JOB, "--on", "sky/runpod-a40.yaml", *settings) as launch:
        pod = rented.wait_for_training()
        launch.ctrl_c()
        launch.ends_with(0)
    rented.loopback.stop()
    try:
        wait_until(lambda: "publish" in rented.head().stages, "publish")
        done = time.monotonic()
        # SkyPilot's skylet on the machine ends it after ten idle minutes.
        wait_until(lambda: pod.status == "TERMINATED", "the machine's own end", every=5.0)
        print(f"the machine ended itself {time.monotonic() - done:.0f} s after the run")
    finally:
        rented.loopback.start()
    # The laptop is back. SkyPilot misses the machine, and can't know that the run is done.
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
        print(watch.text)
    wait_until(lambda: not rented.loopback.living_jobs(), "the end of the job", every=5.0)
    print(rented.loopback.jobs()[0]["status"], len(rented.machines), "machines", flush=True)
    assert not any(machine.alive for machine in rented.machines)
