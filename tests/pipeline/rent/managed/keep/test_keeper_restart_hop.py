"""`pion watch` and a job that makes no progress while two jobs of the run stand, as in a hop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from pion.errors import PionError
from pipeline.rent.managed.look.diagnose import UNNOTICED_SECONDS
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import Claim, claim_run
from pipeline.state.run_state import RunState
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB, FakeProvider, beat
from tests.support.states import someone


def of_launch(launch: str) -> str:
    return f"name: pion-demo\n---\nenvs:\n  PION_LAUNCH_ID: {launch}\nrun: pion run\n"


@pytest.fixture
def old(provider: FakeProvider, run: RunState, time: FakeClock) -> Claim:
    """The owner, on the machine of JOB. Job 8 is to relieve it, and asks for a machine."""
    provider.now("RUNNING", task=of_launch("old"))
    provider.jobs.append(
        dataclasses.replace(
            JOB, id=8, status="STARTING", submitted_at=time.time, task=of_launch("new")
        )
    )

    def submit(task: Any, name: str) -> int:
        provider.submitted.append(task)
        provider.jobs.append(dataclasses.replace(JOB, id=9, task=of_launch("new")))
        return 9

    provider.submit = submit
    return claim_run(run, someone(launch_id="old"))


def test_a_job_that_was_relieved_is_no_reason_not_to_replace_the_one_that_relieved_it(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, old: Claim
) -> None:
    old.release()
    claim_run(run, someone(launch_id="new"))
    provider.change(8, status="RUNNING")
    provider.listed = []
    watcher.look_once()
    time.sleep(UNNOTICED_SECONDS)
    watcher.look_once()
    assert provider.cancelled == [8]
    assert [like for like, _ in provider.submitted] == [8]


def stick(provider: FakeProvider, time: FakeClock, old: Claim) -> None:
    """Let the machine of job 8 boot for ever, while the owner works. It is done a few looks after
    job 8 has ended."""
    provider.listed = [provider.pod("a", "RUNNING"), provider.pod("b", "RUNNING", 8)]
    looks_alone: list[float] = []

    def work() -> None:
        beat(old, stage="sft", step=6 + int(time.time / 100) % 2, steps=10)
        if not any(job.live for job in provider.jobs if job.id == 8):
            looks_alone.append(time.time)
        if len(looks_alone) > 2:
            provider.change(7, status="SUCCEEDED")

    time.during_sleep = work


def test_a_hop_whose_machine_never_boots_ends_and_the_owner_works_on(
    watcher: Watcher, provider: FakeProvider, time: FakeClock, said: list[str], old: Claim
) -> None:
    stick(provider, time, old)
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([8], [])
    assert "managed job 7 is done" in said[-1]
    assert any(line.endswith("cancelled managed job 8") for line in said), said


def test_a_hop_that_ends_although_its_job_could_not_be_cancelled_at_once(
    watcher: Watcher, provider: FakeProvider, time: FakeClock, old: Claim
) -> None:
    cancel, asked = provider.cancel, list[float]()

    def fail_once(ids: Sequence[int]) -> None:
        asked.append(time.time)
        if len(asked) == 1:
            raise PionError("SkyPilot could not cancel: timed out")
        cancel(ids)

    provider.cancel = fail_once
    stick(provider, time, old)
    end = time.time + 2 * BOOT_SECONDS
    work = time.during_sleep

    def give_up() -> None:
        work()
        assert time.time < end, "job 8 was never cancelled"

    time.during_sleep = give_up
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([8], [])
