"""A rented run loses its machine in every possible way, and still finishes."""

import signal
import time

import pytest

from tests.rental.rented import JOB, OVERRIDES, unbroken_run, wait_until
from tests.rental.window import window
from tests.support.s3_server import SECRET_KEY
from tests.support.waiting import run_to_end

pytestmark = pytest.mark.rental


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights of this job without any interruption, trained while pods boot."""
    with unbroken_run(tmp_path_factory.mktemp("unbroken")) as weights:
        yield weights


@pytest.fixture
def launch(rented):
    """Run `pion launch` of the job on a spot machine, and follow it."""
    overrides = [f"store={rented.store}", *OVERRIDES]
    with window(rented, "launch", JOB, "--on", "sky/runpod-spot.yaml", *overrides) as launched:
        yield launched


def test_a_preempted_machine_is_replaced_and_the_weights_are_those_of_an_unbroken_run(
    rented, launch, unbroken
):
    first = rented.wait_for_training(saves=2)
    assert first.use_spot
    assert first.gpu == "NVIDIA A40", "the cheapest GPU of the YAML"

    said = ""

    def run_has_ended():
        nonlocal said
        said = first.job_log()
        return not any("pion run" in command for command in first.processes().values())

    # RunPod gives five seconds. How many a run needs depends on the machine, and is printed.
    signalled = time.monotonic()
    rented.loopback.runpod.preempt(first, notice=60.0, early=run_has_ended)
    print(f"the run ended {time.monotonic() - signalled:.1f} s after its signal")
    head = rented.head()
    assert head.owner is None, f"the run ended without handing over:\n{said}"
    launch.ends_with(0)
    # By SkyPilot, or by `pion launch` where SkyPilot takes minutes to notice. One that is slow to
    # start may be replaced, too.
    assert len(rented.machines) > 1, launch.text
    starts = rented.rows_trained()
    assert starts[1][0] == head.checkpoints[0].step > 0, "steps were lost"
    assert all(row == step * 8 for step, row in starts), "rows were skipped or repeated"
    assert rented.final_model() == unbroken()


def test_a_machine_that_dies_without_a_signal_costs_no_committed_step(rented, launch, unbroken):
    first = rented.wait_for_training(saves=2)
    committed = rented.head().checkpoints[0].step
    rented.loopback.runpod.preempt(first, notice=0.0, leaves="gone")
    launch.ends_with(0)
    assert rented.rows_trained()[-1][0] >= committed > 0
    assert rented.final_model() == unbroken()


def test_a_machine_that_is_cut_off_but_alive_is_fenced_by_its_successor(rented, launch, unbroken):
    old = rented.wait_for_training(saves=1)
    # It is frozen until its successor trains, then continues as if nothing had happened.
    old.signal(signal.SIGSTOP)
    rented.loopback.runpod.cut_off(old)
    rented.wait_for_training(machine=1)
    head = rented.head()
    old.signal(signal.SIGCONT)
    wait_until(lambda: "return code list:" in old.job_log(), "the end of the old machine's job")
    assert "taken over" in old.job_log()
    assert "[3]" in old.job_log(), "exit code 3 means that it was taken over"
    launch.ends_with(0)
    assert rented.head().epoch >= head.epoch
    assert rented.final_model() == unbroken(), "the old machine's steps got in between"


def test_a_machine_with_too_small_a_disk_is_left_for_another_within_seconds(rented):
    rented.loopback.runpod.small_disks = 1
    rented.launch()
    wait_until(lambda: rented.machines, "a machine")
    bad = rented.machines[0]
    wait_until(lambda: "this machine won't do" in bad.job_log(), "the boot check")
    assert "Nothing was installed" in bad.job_log()
    good = rented.wait_for_training(machine=1)
    assert "GB disk" in good.job_log()
    assert not bad.alive, "the bad machine is still billed"


def test_no_secret_is_in_the_files_that_a_rental_leaves(rented):
    rented.launch()
    pod = rented.wait_for_training()
    assert SECRET_KEY not in pod.job_log()
    for query in (text for _, text in rented.loopback.runpod.requests):
        assert SECRET_KEY not in query
    # The copied checkout also has the file of these tests that defines the key.
    command = ["grep", "-rlF", "--exclude=s3_server.py", SECRET_KEY, str(pod.home / "sky_workdir")]
    found = run_to_end(command)
    assert found.stdout == ""
