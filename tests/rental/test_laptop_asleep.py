"""A rental whose laptop sleeps or is off: its machine works on, and nobody replaces or ends it.

A machine ends itself here after one idle minute. SkyPilot's ten minutes were tried, too: 560 to
580 s after the run, the machine had ended itself.
"""

import pytest

from tests.rental.rented import JOB, OVERRIDES, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental

A40 = "sky/runpod-a40.yaml"


@pytest.fixture(scope="module", autouse=True)
def impatient_machines(loopback):
    with loopback.machines_idle_for(minutes=1):
        yield


def launch(rented, on=A40):
    return window(rented, "launch", JOB, "--on", on, f"store={rented.store}", *OVERRIDES)


def wait_until_published(rented):
    wait_until(lambda: "publish" in rented.head().stages, "publish")


def wait_until_ended(pod):
    wait_until(lambda: pod.status == "TERMINATED", "the machine's own end")


def nothing_is_left(rented):
    wait_until(lambda: not rented.loopback.living_jobs(), "the end of the job", every=5.0)
    wait_until(lambda: not any(pod.alive for pod in rented.machines), "the end of all machines")
    lives = [f"{pod.ended - pod.created:.0f} s" for pod in rented.machines]
    print(f"machines lived for {', '.join(lives)}", flush=True)
    return True


def test_while_the_laptop_sleeps_the_run_ends_and_so_does_its_machine(rented):
    with launch(rented) as launched:
        pod = rented.wait_for_training()
        with rented.loopback.asleep():
            wait_until_published(rented)
            wait_until_ended(pod)
        # SkyPilot misses the machine, and can't know that the run is done.
        launched.ends_with(0)
        assert "The run is finished, so Pion will not rent a new machine" in launched.text
        assert "the run is finished: managed job" in launched.text
    assert nothing_is_left(rented)


def test_a_server_that_is_off_after_the_launch_and_at_the_end_costs_ten_minutes(rented):
    with launch(rented) as launched:
        assert launched.job
    rented.loopback.stop()
    rented.loopback.start()
    pod = rented.wait_for_training()
    wait_until_published(rented)
    rented.loopback.stop()
    wait_until_ended(pod)
    rented.loopback.start()
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
    assert nothing_is_left(rented)


def test_a_machine_that_boots_while_the_server_stops_is_used_or_ended_by_the_next(rented):
    """Until then, nobody ends it: its timer is not set yet."""
    with launch(rented) as launched:
        assert launched.job
        pod = rented.wait_for_machine(0)
    rented.loopback.stop()
    assert pod.alive
    rented.loopback.start()
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
    wait_until_published(rented)
    assert nothing_is_left(rented)


def test_a_spot_machine_that_is_lost_while_the_server_is_off_is_replaced_later(rented):
    with launch(rented, "sky/runpod-spot.yaml"):
        pod = rented.wait_for_training()
    rented.loopback.stop()
    rented.loopback.runpod.preempt(pod)
    saved = rented.head().checkpoints[0].step
    assert rented.machines == [pod], "nothing is billed meanwhile"
    rented.loopback.start()
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
    assert rented.rows_trained()[-1][0] >= saved > 0
    assert nothing_is_left(rented)
