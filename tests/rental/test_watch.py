"""`pion watch` with a real SkyPilot, which needs minutes to notice that an EXITED pod is dead."""

import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pipeline.state.rows.metrics import read_events
from pipeline.state.stores import open_store
from tests.rental.rented import JOB, OVERRIDES, RUN, unbroken_run
from tests.rental.skypilot_home import REPOSITORY
from tests.rental.window import window

pytestmark = pytest.mark.rental

# How much two recoveries may differ. Without the watcher, SkyPilot needs 130 s more.
NOISE_SECONDS = 45.0
# Enough steps to last until SkyPilot reports that it has recovered the run.
LONGER = 12_000


@contextmanager
def watched(rented, on, *overrides):
    """Launch, close that window, and yield another window that watches the run."""
    settings = [f"store={rented.store}", *OVERRIDES, *overrides]
    with window(rented, "launch", JOB, "--on", str(on), *settings) as launch:
        assert launch.job
        launch.ctrl_c()
        launch.ends_with(0)
    with window(rented, "watch", rented.run) as watch:
        yield watch


def pods_ended(rented):
    """Return what the watcher has done about each dead pod, in words."""
    events = read_events(open_store(rented.store), RUN)
    return [e["done"] for e in events if e["event"] == "watch" and e["what"] == "dead pod"]


def test_a_pod_left_as_exited_is_replaced_as_soon_as_one_that_vanishes_and_nothing_is_lost(
    rented, tmp_path
):
    def seconds_to_the_next(machine, leaves, notice=0.0):
        """Take the machine, and return the seconds until the next machine trains."""
        pod = rented.wait_for_training(machine)
        lost = time.monotonic() + notice
        rented.loopback.runpod.preempt(pod, notice=notice, leaves=leaves)
        rented.wait_for_training(machine + 1)
        return time.monotonic() - lost

    on, steps = Path("sky/runpod-a40.yaml"), f"pretrain.steps={LONGER}"
    with unbroken_run(tmp_path, LONGER) as unbroken, watched(rented, on, steps) as watch:
        watch.wait_for("RUNNING on RunPod")
        vanished = seconds_to_the_next(0, "gone")
        watch.wait_for("recovered 1 time")  # during a launch SkyPilot sees a lost pod by itself
        # No signal: after a signal the run exits with 75, which SkyPilot may notice in time.
        exited = seconds_to_the_next(1, "exited")
        dead = rented.machines[1]
        assert f"dead pod: pod {dead.id} is EXITED in RunPod's list" in watch.text
        watch.wait_for("recovered 2 times")
        warned = seconds_to_the_next(2, "exited", notice=5.0)
        watch.wait_for("recovered 3 times")
        watch.ends_with(0)
        assert rented.final_model(LONGER) == unbroken()
    print(
        f"training again: {vanished:.0f} s after a pod vanished, {exited:.0f} s and (with a "
        f"signal) {warned:.0f} s after one was left as EXITED"
    )
    assert exited < vanished + NOISE_SECONDS
    assert warned < vanished + NOISE_SECONDS
    # A run that got a signal exits with 75. SkyPilot may notice that first, and end its pod itself.
    first, *second = pods_ended(rented)
    assert first == [f"terminated pod {dead.id}"]
    assert second in ([], [[f"terminated pod {rented.machines[2].id}"]])


def test_a_place_whose_machines_all_die_young_is_left_for_another(rented, tmp_path):
    config = yaml.safe_load((REPOSITORY / "sky" / "runpod-spot.yaml").read_text())
    config["resources"]["ordered"] = [
        {"accelerators": gpu, "use_spot": True} for gpu in ("A40:1", "RTXA4000:1")
    ]
    two = tmp_path / "two.yaml"
    two.write_text(yaml.safe_dump(config))
    # The boot check refuses three machines in a row. SkyPilot would continue to rent there.
    rented.loopback.runpod.small_disks = 3
    with watched(rented, two) as watch:
        watch.wait_for("restarted the run as managed job ")
        first, *_ = rented.machines
        gpu = first.gpu.removeprefix("NVIDIA ").replace(" ", "")
        assert f"bad place: the last 3 machines were {gpu} spot on RunPod" in watch.text
        watch.ends_with(0)
        # SkyPilot may have rented a fourth machine there before its job was cancelled.
        assert rented.machines[-1].gpu != first.gpu
        assert "publish" in rented.head().stages
