"""A rental that ends after a stage, as `pion watch` and `pion launch` follow it."""

from __future__ import annotations

import pytest
import yaml

from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import Claim, claim_run
from pipeline.state.run_state import RunState
from tests.support.clock import FakeClock
from tests.support.fake_provider import FakeProvider, beat, during, succeed, succeed_after
from tests.support.light_run import JOB
from tests.support.states import someone

TASK = "name: pion-demo\n---\nenvs:\n  PION_LAUNCH_ID: l\n  PION_UNTIL: sft\nrun: pion run\n"


@pytest.fixture
def claim(run: RunState, provider: FakeProvider, time: FakeClock) -> Claim:
    """The machine of a rental until sft has claimed the run."""
    provider.now("RUNNING", task=TASK)
    claim = claim_run(run, someone(launch_id="l"))
    beat(claim, stage="sft", step=6)
    return claim


def finish(claim: Claim) -> None:
    claim.finish_stage("sft", "d", {})
    claim.release()


def test_it_is_over_and_the_next_stage_is_said(
    watcher: Watcher, provider: FakeProvider, claim: Claim, time: FakeClock, said: list[str]
) -> None:
    during(time, lambda: finish(claim), succeed(provider))
    assert watcher.follow() == 0
    assert "managed job 7 is done" in said[-2]
    assert "next: evaluate. Rent a machine for it: pion launch JOB --on SKY" in said[-1]
    assert (provider.submitted, provider.cancelled, provider.terminated) == ([], [], [])


def test_a_controller_that_is_lost_after_its_last_stage_is_not_replaced(
    watcher: Watcher, provider: FakeProvider, claim: Claim, said: list[str]
) -> None:
    finish(claim)
    provider.now("FAILED_CONTROLLER")
    assert watcher.follow() == 0
    assert provider.submitted == []
    assert provider.terminated == ["a"], "nobody else would end it"
    assert "next: evaluate" in said[-1]


def test_a_machine_that_skypilot_seeks_after_its_last_stage_is_not_needed(
    watcher: Watcher, provider: FakeProvider, claim: Claim, said: list[str]
) -> None:
    finish(claim)
    provider.now("RECOVERING")
    provider.listed = []
    watcher.look_once()
    assert provider.cancelled == [7]
    assert "The run has done sft, so Pion will not rent a new machine" in "\n".join(said)


def test_a_stage_that_was_done_before_is_done_again_to_its_end(
    run: RunState, watcher: Watcher, provider: FakeProvider, time: FakeClock
) -> None:
    """It was done under other settings, or the machine would not have claimed the run."""
    finish(claim_run(run, someone()))
    time.time += 60
    claim_run(run, someone(launch_id="l")).heartbeat.beat()
    provider.now("RECOVERING", task=TASK)
    provider.listed = []
    watcher.look_once()
    assert provider.cancelled == []


def test_the_stage_being_done_is_watched_as_any_other(
    watcher: Watcher, provider: FakeProvider, claim: Claim, time: FakeClock
) -> None:
    provider.listed = [provider.pod("x", "EXITED")]
    succeed_after(provider, time, 30)
    watcher.follow()
    assert provider.terminated == ["x"]


def test_a_finished_run_that_is_launched_again_is_not_over_for_the_new_job(
    run: RunState, watcher: Watcher, provider: FakeProvider
) -> None:
    """The job may have more to do now. The store knows only once the new machine has claimed."""
    run.write_job("0123", yaml.safe_dump(JOB))
    claim = claim_run(run, someone(launch_id="before"))
    claim.set_job("0123")
    for stage in ("prepare", "pretrain", "sft", "evaluate", "publish"):
        claim.finish_stage(stage, "d", {})
    claim.release()
    provider.now("STARTING", task=TASK.replace("  PION_UNTIL: sft\n", ""))
    provider.listed = []
    watcher.look_once()
    assert provider.cancelled == []
