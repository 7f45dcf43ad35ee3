"""A YAML in sky/ without `pion launch`: SkyPilot's two commands train and publish on a pod."""

import pytest

from pipeline.state.rows.metrics import read_events
from pipeline.state.stores import open_store
from tests.rental.rented import RUN, wait_until

pytestmark = pytest.mark.rental


def test_a_managed_job_trains_and_publishes_and_then_its_machine_is_gone(rented):
    rented.launch("sky/runpod-spot.yaml")
    rented.wait_for_the_end()
    (pod,) = rented.machines
    assert pod.use_spot
    assert pod.image, "no image was requested"
    assert pod.disk_gb == 60
    wait_until(lambda: not pod.alive, "the end of the machine")
    phases = [e["name"] for e in read_events(open_store(rented.store), RUN) if "name" in e]
    assert "prepare" in phases


def test_a_bare_launch_trains_and_publishes(rented):
    rented.launch("sky/runpod-a4000.yaml", managed=False)
    wait_until(lambda: "publish" in rented.head().stages, "publish")
    (pod,) = rented.machines
    assert pod.gpu == "NVIDIA RTX A4000"
    assert not pod.use_spot
    assert "10m (down)" in rented.loopback.sky("status"), "it would be billed forever"


def test_without_a_job_nothing_is_rented(rented):
    for command in (["jobs", "launch"], ["launch"]):
        with pytest.raises(RuntimeError, match="JOB"):
            rented.loopback.sky(*command, "-y", "-d", "sky/runpod-spot.yaml")
    assert rented.machines == []
