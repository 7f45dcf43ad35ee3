"""A rental whose laptop sleeps or is off: its machine works on, and nobody replaces or ends it.

A machine ends itself here after one idle minute. SkyPilot's ten minutes were tried, too: 560 to
580 s after the run, the machine had ended itself.
"""

import time

import pytest

from tests.rental.rented import JOB, OVERRIDES, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental

A40 = ("--on", "sky/runpod-a40.yaml")


@pytest.fixture
def rented(rented):
    """The loopback cloud, whose machines end themselves after one idle minute."""
    with rented.loopback.machines_idle_for(minutes=1):
        yield rented


def launch(rented, *on):
    return window(rented, "launch", JOB, *on, f"store={rented.store}", *OVERRIDES)


def wait_until_published(rented):
    wait_until(lambda: "publish" in rented.head().stages, "publish")


def wait_until_ended(pod):
    began = time.monotonic()
    wait_until(lambda: pod.status == "TERMINATED", "the machine's own end", every=2.0)
    print(f"the machine ended itself after {time.monotonic() - began:.0f} s", flush=True)


def test_while_the_laptop_sleeps_the_run_ends_and_so_does_its_machine(rented):
    with launch(rented, *A40) as launched:
        pod = rented.wait_for_training()
        with rented.loopback.asleep():
            wait_until_published(rented)
            wait_until_ended(pod)
        # The laptop is awake. SkyPilot misses the machine, and can't know that the run is done.
        launched.ends_with(0)
        print(launched.text, flush=True)
    wait_until(lambda: not rented.loopback.living_jobs(), "the end of the job", every=5.0)
    print(rented.loopback.jobs()[0]["status"], len(rented.machines), "machines", flush=True)
    assert not any(machine.alive for machine in rented.machines)


def test_explore_submit(rented):
    with launch(rented, *A40) as launched:
        job = launched.job
    rented.loopback.stop()
    print("stopped after submit", job, len(rented.machines), flush=True)
    time.sleep(150)
    print("150 s later", [(m.status, m.alive) for m in rented.machines], flush=True)
    rented.loopback.start()
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
        print(watch.text, flush=True)
    print([(m.status, m.alive) for m in rented.machines], flush=True)


def test_explore_boot(rented):
    with launch(rented, *A40) as launched:
        job = launched.job
        pod = rented.wait_for_machine(0)
    rented.loopback.stop()
    print("stopped after a pod", job, len(rented.machines), flush=True)
    time.sleep(240)
    print("240 s later", [(m.status, m.alive) for m in rented.machines], rented.head(), flush=True)
    print(pod.processes() if pod.alive else "", flush=True)
    rented.loopback.start()
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
        print(watch.text, flush=True)
    time.sleep(20)
    print([(m.status, m.alive) for m in rented.machines], flush=True)


def test_explore_spot(rented):
    with launch(rented, "--on", "sky/runpod-spot.yaml"):
        pod = rented.wait_for_training()
    rented.loopback.stop()
    rented.loopback.runpod.preempt(pod)
    time.sleep(30)
    print(rented.head().owner, len(rented.machines))
    rented.loopback.start()
    with window(rented, "watch", rented.run) as watch:
        watch.ends_with(0)
        print(watch.text, flush=True)
    print([(m.status, m.alive) for m in rented.machines], flush=True)
