"""A YAML in sky/ without `pion launch`: SkyPilot's two commands publish, although a pod is lost.

test_recovery.py does the same with `pion launch`.
"""

import pytest

from pipeline.state.rows.metrics import read_events
from pipeline.state.stores import open_store
from tests.rental.rented import RUN, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental


def test_a_managed_job_replaces_a_lost_machine_publishes_and_then_its_machine_is_gone(rented):
    rented.launch("sky/runpod-spot.yaml")
    rented.loopback.runpod.preempt(rented.wait_for_training())
    rented.wait_for_the_end()
    _, pod = rented.machines
    assert pod.use_spot
    assert pod.image, "no image was requested"
    assert pod.disk_gb == 60
    wait_until(lambda: not pod.alive, "the end of the machine")
    phases = [e["name"] for e in read_events(open_store(rented.store), RUN) if "name" in e]
    assert "prepare" in phases


def test_a_bare_launch_is_repeated_by_hand_if_its_machine_is_lost_and_publishes(rented):
    rented.launch("sky/runpod-a4000.yaml", managed=False)
    rented.loopback.runpod.preempt(rented.wait_for_training())
    saved = rented.head().checkpoints[0].step
    rented.launch("sky/runpod-a4000.yaml", managed=False)
    wait_until(lambda: "publish" in rented.head().stages, "publish")
    assert rented.rows_trained()[-1][0] >= saved > 0
    _, pod = rented.machines
    assert pod.gpu == "NVIDIA RTX A4000"
    assert not pod.use_spot
    assert "10m (down)" in rented.loopback.sky("status"), "it would be billed forever"
    with window(rented, "rentals") as rentals:
        rentals.ends_with(0)
        assert f"pod {pod.id} ({pod.name}), $0.25/h is RUNNING at RunPod, and" in rentals.text


def test_without_a_job_nothing_is_rented(rented):
    for command in (["jobs", "launch"], ["launch"]):
        with pytest.raises(RuntimeError, match="JOB"):
            rented.loopback.sky(*command, "-y", "-d", "sky/runpod-spot.yaml")
    assert rented.machines == []
