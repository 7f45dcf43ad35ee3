"""`pion watch` and a job that makes no progress while two jobs of the run stand, as in a hop."""

import dataclasses

import pytest

from pion.errors import PionError
from pipeline.rent.managed.look.diagnose import UNNOTICED_SECONDS
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.state.claim import claim_run
from tests.support.fake_provider import JOB, beat
from tests.support.states import someone


def of_launch(launch):
    return f"name: pion-demo\n---\nenvs:\n  PION_LAUNCH_ID: {launch}\nrun: pion run\n"


@pytest.fixture
def old(rental):
    """The owner, on the machine of JOB. Job 8 is to relieve it, and asks for a machine."""
    provider, asks = rental.provider, {"status": "STARTING", "submitted_at": rental.time.time}
    provider.now("RUNNING", task=of_launch("old"))
    provider.jobs.append(dataclasses.replace(JOB, id=8, task=of_launch("new"), **asks))

    def submit(task, name):
        provider.submitted.append(task)
        provider.jobs.append(dataclasses.replace(JOB, id=9, task=of_launch("new")))
        return 9

    provider.submit = submit
    return claim_run(rental.run, someone(launch_id="old"))


def test_a_job_that_was_relieved_is_no_reason_not_to_replace_the_one_that_relieved_it(rental, old):
    old.release()
    claim_run(rental.run, someone(launch_id="new"))
    rental.provider.change(8, status="RUNNING")
    rental.provider.listed = []
    rental.watcher.look_once()
    rental.time.sleep(UNNOTICED_SECONDS)
    rental.watcher.look_once()
    assert rental.provider.cancelled == [8]
    assert [like for like, _ in rental.provider.submitted] == [8]


@pytest.mark.slow
@pytest.mark.parametrize("failures", [0, 1])
def test_a_hop_whose_machine_never_boots_ends_and_the_owner_works_on(rental, old, failures):
    """Also if its job could not be cancelled at once."""
    provider, time = rental.provider, rental.time
    provider.listed = [provider.pod("a", "RUNNING"), provider.pod("b", "RUNNING", 8)]
    end, cancel = time.time + 2 * BOOT_SECONDS, provider.cancel
    asked, looks_alone = [], []

    def fail_at_first(ids):
        asked.append(time.time)
        if len(asked) <= failures:
            raise PionError("SkyPilot could not cancel: timed out")
        cancel(ids)

    def work():
        """Let the owner work. It is done a few looks after job 8 has ended."""
        beat(old, stage="sft", step=6 + int(time.time / 100) % 2, steps=10)
        if not any(job.live for job in provider.jobs if job.id == 8):
            looks_alone.append(time.time)
        if len(looks_alone) > 2:
            provider.change(7, status="SUCCEEDED")
        assert time.time < end, "job 8 was never cancelled"

    provider.cancel, time.during_sleep = fail_at_first, work
    assert rental.watcher.follow() == 0
    assert rental.orders == ([8], [])
    assert "managed job 7 is done" in rental.said[-1]
    said = any(line.endswith("cancelled managed job 8") for line in rental.said)
    assert said or failures, rental.said
