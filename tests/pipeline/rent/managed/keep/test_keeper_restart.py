"""`pion watch` ends a job that makes no progress and submits it again, elsewhere if needed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pion.errors import PionError
from pipeline.rent.managed.keep.keeper import PATIENT_CANCEL_SECONDS
from pipeline.rent.managed.keep.renter import FUTILE_RESTARTS, Renter
from pipeline.rent.managed.look.diagnose import UNNOTICED_SECONDS
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS, ManagedJob
from pipeline.rent.managed.request import submitting_alone
from pipeline.rent.managed.watch import Watcher, follow_or_leave
from pipeline.state.claim import claim_run
from pipeline.state.rows.metrics import EventLog, read_events
from pipeline.state.run_state import RunState
from tests.pipeline.rent.managed.look.test_diagnose import A40
from tests.support.clock import FakeClock
from tests.support.fake_provider import (
    JOB,
    FakeProvider,
    beat,
    during,
    fail_to_submit,
    lose_secrets,
    succeed,
    succeed_after,
)
from tests.support.states import someone


def test_a_place_where_machines_die_young_is_avoided_from_then_on(
    watcher: Watcher, provider: FakeProvider, time: FakeClock, said: list[str]
) -> None:
    def recovered(times: int) -> Callable[[], None]:
        return lambda: provider.now("RUNNING", recoveries=times, recovered_at=time.time)

    def recovering() -> None:
        provider.now("RECOVERING")

    during(time, recovering, recovered(1), recovering, recovered(2), recovering, succeed(provider))
    watcher.follow()
    assert (provider.cancelled, provider.submitted) == ([7], [(7, {A40})])
    assert "restarted the run as managed job 8 and excluded A40 spot on RunPod/CA" in "\n".join(
        said
    )


def test_a_job_that_may_go_nowhere_else_is_left_as_it_is(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    provider.only = A40
    claim = claim_run(run, someone())
    events = EventLog(run.store, run.name, claim.epoch)
    for age in (900, 600, 300):
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True, "managed_job": "7"}
        events.append("machine", id=f"pod{age}", rented_at=time.time - age, **about)
    events.flush()
    provider.now("RECOVERING")
    during(time, lambda: None, succeed(provider))
    watcher.follow()
    assert not provider.cancelled
    assert not provider.submitted
    told = [line for line in said if "the YAML allows nothing but that" in line]
    assert len(told) == 1


def test_two_reasons_to_restart_make_one_restart(
    watcher: Watcher, provider: FakeProvider, time: FakeClock, said: list[str]
) -> None:
    provider.listed = []
    time.time += 3600  # since the run's last sign of life
    provider.now("RUNNING", started_at=time.time - BOOT_SECONDS + UNNOTICED_SECONDS)

    def live() -> None:
        if provider.submitted:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert len(provider.submitted) == 1
    assert "boot not finished" not in "\n".join(said)  # that was wrong with the job before


def test_machines_of_an_earlier_job_say_nothing_against_a_place(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock
) -> None:
    events = EventLog(run.store, run.name, claim_run(run, someone()).epoch)
    for age, job_id in ((900, "5"), (600, "6"), (300, "7")):
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "managed_job": job_id}
        events.append("machine", id=f"pod{age}", rented_at=time.time - age, spot=True, **about)
    events.flush()
    provider.now("RECOVERING")
    during(time, lambda: None, succeed(provider))
    assert watcher.follow() == 0
    assert not provider.cancelled


def test_a_job_that_can_not_be_submitted_again_keeps_its_pod(
    watcher: Watcher, provider: FakeProvider, time: FakeClock, said: list[str]
) -> None:
    lose_secrets(provider)
    provider.now("STARTING", submitted_at=time.time)
    succeed_after(provider, time, BOOT_SECONDS + 60)
    watcher.follow()
    assert "HF_TOKEN must be set" in "\n".join(said)
    assert not provider.terminated
    assert not provider.cancelled


def test_a_pod_that_nobody_would_end_is_replaced_in_the_same_place_if_there_is_no_other(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock
) -> None:
    provider.only = A40
    provider.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if provider.submitted:
            provider.now("SUCCEEDED", id=8)

    time.during_sleep = live
    watcher.follow()
    assert (provider.terminated, provider.cancelled, provider.submitted) == (
        ["a"],
        [7],
        [(7, set())],
    )


def test_a_run_that_no_machine_ever_owns_is_given_up_in_the_end(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    provider.now("STARTING", submitted_at=time.time)

    def boot_in_vain() -> None:
        provider.jobs = [
            dataclasses.replace(j, status="STARTING", submitted_at=time.time)
            if j.status == "RUNNING"
            else j
            for j in provider.jobs
        ]

    time.during_sleep = boot_in_vain
    assert watcher.follow() == 1
    assert len(provider.submitted) == FUTILE_RESTARTS
    assert provider.cancelled == [7, 8, 9, 10]
    assert "no machine has owned the run after 3 restarts" in "\n".join(said)
    assert not any(pod.alive for pod in provider.listed)


def test_a_run_at_work_is_watched_without_its_controller_and_restarted_when_it_ends(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock
) -> None:
    claim = claim_run(run, someone())
    beat(claim, stage="sft", step=6)
    provider.now("FAILED_CONTROLLER", failure="the machine of the controller was restarted")
    start, rented_at = time.time, []

    def live() -> None:
        if time.time - start < 600:
            beat(claim, stage="sft", step=7)
        elif not provider.submitted:
            provider.listed = []
        if provider.submitted:
            rented_at.append(time.time - start)
            provider.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert rented_at[0] >= 660
    assert not provider.terminated


def test_while_a_person_submits_the_run_it_is_not_submitted_again(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    provider.now("FAILED_CONTROLLER")
    other = contextlib.ExitStack()
    other.enter_context(submitting_alone(JOB.name))
    submitted_meanwhile: list[int] = []

    def leave() -> None:
        submitted_meanwhile.append(len(provider.submitted))
        other.close()

    during(time, leave, lambda: provider.now("SUCCEEDED", id=8))
    assert watcher.follow() == 0
    assert submitted_meanwhile == [0]
    assert len(provider.submitted) == 1
    assert "another process on this machine is submitting" in "\n".join(said)


def test_a_lost_controller_ends_no_run(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    claim_run(run, someone())
    provider.now("FAILED_CONTROLLER", failure="the machine of the controller was restarted")
    during(time, lambda: provider.now("SUCCEEDED", id=8))
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([], [(7, set())])
    assert "the machine of the controller was restarted" in "\n".join(said)


def test_a_job_cancelled_for_a_restart_is_submitted_however_often_that_fails(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock
) -> None:
    fail_to_submit(provider, times=3)
    provider.now("STARTING", submitted_at=time.time - BOOT_SECONDS)

    def live() -> None:
        if provider.submitted:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([7], [(7, {A40})])


def test_a_submission_that_only_seemed_to_fail_is_not_repeated(
    watcher: Watcher, provider: FakeProvider, time: FakeClock
) -> None:
    really_submit = provider.submit

    def submit(task: Any, name: str) -> int:
        really_submit(task, name)
        raise PionError("SkyPilot could not submit: timed out")

    provider.submit = submit
    provider.now("STARTING", submitted_at=time.time)
    looks_since: list[float] = []

    def live() -> None:
        if provider.submitted:
            looks_since.append(time.time)
        if len(looks_since) > 1:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert len(provider.submitted) == 1


def test_a_job_that_another_process_submits_meanwhile_is_followed_and_not_submitted_again(
    watcher: Watcher, provider: FakeProvider, time: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = Renter.announce

    def submitted_elsewhere(renter: Renter, *announced: Any) -> None:
        announce(renter, *announced)
        provider.jobs.append(dataclasses.replace(JOB, id=8))

    monkeypatch.setattr(Renter, "announce", submitted_elsewhere)
    provider.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if provider.cancelled and any(job.id == 8 for job in provider.jobs):
            provider.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([7], [])


@pytest.mark.parametrize("fails", ["cancel", "managed_jobs"])
def test_a_job_that_is_cancelled_is_submitted_again_even_if_its_end_could_not_be_seen(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, fails: str
) -> None:
    failures = [PionError("SkyPilot could not: timed out") for _ in range(3)]
    really_cancel, really_list = provider.cancel, provider.managed_jobs

    def cancel(ids: Sequence[int]) -> None:
        really_cancel(ids)
        if fails == "cancel" and failures:
            raise failures.pop()

    def managed_jobs(name: str, **more: Any) -> Sequence[ManagedJob]:
        if fails == "managed_jobs" and provider.cancelled and failures:
            raise failures.pop()
        return really_list(name, **more)

    provider.cancel, provider.managed_jobs = cancel, managed_jobs
    provider.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if provider.submitted:
            provider.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (provider.cancelled, provider.submitted) == ([7], [(7, {A40})])


def test_a_job_that_ends_well_before_it_could_be_cancelled_is_not_submitted_again(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    def cancel(ids: Sequence[int]) -> None:
        provider.now("SUCCEEDED")

    provider.cancel = cancel
    provider.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if provider.submitted:
            provider.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert not provider.submitted
    assert "managed job 7 was already over (SUCCEEDED), so it was not restarted" in "\n".join(said)


def test_one_look_submits_what_it_has_ended_though_that_fails_at_first(
    watcher: Watcher, provider: FakeProvider, run: RunState
) -> None:
    fail_to_submit(provider, times=3)
    provider.now("FAILED_CONTROLLER")
    assert watcher.look_once() == 1
    assert provider.submitted == [(7, set())]


def test_one_look_that_can_not_submit_what_it_has_ended_says_so(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock
) -> None:
    fail_to_submit(provider, times=1000)
    provider.now("FAILED_CONTROLLER")
    start = time.time
    with pytest.raises(PionError, match=r"timed out Pion was cancelling .*pion launch") as e:
        watcher.look_once()
    assert f"`pion rentals {run.store.url}/demo`" in str(e.value)
    assert time.time - start < PATIENT_CANCEL_SECONDS + 60


def test_a_lost_controller_without_the_secrets_for_a_restart_ends_the_watch(
    watcher: Watcher, provider: FakeProvider, run: RunState, said: list[str]
) -> None:
    lose_secrets(provider)
    claim_run(run, someone())
    provider.now("FAILED_CONTROLLER")
    assert watcher.follow() == 1
    assert "HF_TOKEN must be set" in "\n".join(said)


def test_a_restart_that_is_impossible_is_reported_once(
    watcher: Watcher, provider: FakeProvider, run: RunState, time: FakeClock, said: list[str]
) -> None:
    lose_secrets(provider)
    claim_run(run, someone())
    provider.listed = []
    succeed_after(provider, time, UNNOTICED_SECONDS + 60)
    assert watcher.follow() == 0
    assert not provider.cancelled
    assert len([line for line in said if "HF_TOKEN must be set" in line]) == 1
    assert len([e for e in read_events(run.store, run.name) if e["event"] == "watch"]) == 1


def test_ctrl_c_while_the_run_is_restarted_does_not_say_that_it_continues(
    run: RunState,
    provider: FakeProvider,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def submit(task: Any, name: str) -> int:
        raise KeyboardInterrupt

    provider.submit = submit
    provider.now("FAILED_CONTROLLER")
    claim_run(run, someone())
    assert follow_or_leave(run, JOB.name, JOB.id, provider) == 130
    out = capsys.readouterr().out
    assert "continues\n" not in out
    assert "Pion was cancelling managed job 7 to restart the run" in out
    assert f"pion rentals {run.store.url}/demo" in out
