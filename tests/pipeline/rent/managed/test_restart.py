"""`pion watch` ends a job that comes to nothing and submits it anew, elsewhere where it must be."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import pytest

from pion.errors import PionError
from pipeline.rent.managed.diagnose import (
    BOOT_SECONDS,
    UNNOTICED_SECONDS,
)
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.restart import CANCEL_SECONDS, TIMES_IN_VAIN
from pipeline.rent.managed.submission import submitting_alone
from pipeline.rent.managed.watch import Watcher, follow_or_leave
from pipeline.state.claim import claim_run
from pipeline.state.metrics import EventLog, read_events
from pipeline.state.run_state import RunState
from tests.pipeline.rent.managed.test_diagnose import A40, JOB
from tests.support.clock import FakeClock
from tests.support.states import someone
from tests.support.watched_rental import (
    Cloud,
    beat,
    during,
    failing_at_first,
    lost_controller,
    succeed,
    succeed_after,
    without_its_secrets,
)


def test_a_place_where_machines_die_young_is_avoided_from_then_on(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    def recovered(times: int) -> Callable[[], None]:
        return lambda: cloud.now("RUNNING", recoveries=times, recovered_at=time.time)

    def recovering() -> None:
        cloud.now("RECOVERING")

    during(time, recovering, recovered(1), recovering, recovered(2), recovering, succeed(cloud))
    watcher.follow()
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, {A40})])
    assert "anew as managed job 8, not on A40 spot on RunPod/CA" in "\n".join(said)


def test_a_job_that_may_go_nowhere_else_is_left_as_it_is(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    cloud.only = A40
    claim = claim_run(run, someone())
    events = EventLog(run.store, run.name, claim.epoch)
    for age in (900, 600, 300):
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True, "managed_job": "7"}
        events.append("machine", id=f"pod{age}", rented_at=time.time - age, **about)
    events.flush()
    cloud.now("RECOVERING")
    during(time, lambda: None, succeed(cloud))
    watcher.follow()
    assert not cloud.cancelled
    assert not cloud.submitted
    told = [line for line in said if "the YAML allows nothing but that" in line]
    assert len(told) == 1


def test_two_reasons_to_start_anew_are_one_start(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    cloud.listed = []
    time.time += 3600  # since the run's last sign of life
    cloud.now("RUNNING", started_at=time.time - BOOT_SECONDS + UNNOTICED_SECONDS)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert len(cloud.submitted) == 1
    assert "boot not finished" not in "\n".join(said)  # that was wrong with the job before


def test_machines_of_an_earlier_job_say_nothing_against_a_place(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    events = EventLog(run.store, run.name, claim_run(run, someone()).epoch)
    for age, job_id in ((900, "5"), (600, "6"), (300, "7")):
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "managed_job": job_id}
        events.append("machine", id=f"pod{age}", rented_at=time.time - age, spot=True, **about)
    events.flush()
    cloud.now("RECOVERING")
    during(time, lambda: None, succeed(cloud))
    assert watcher.follow() == 0
    assert not cloud.cancelled


def test_what_can_not_be_submitted_anew_keeps_its_pod(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    watcher.provider = without_its_secrets(watcher.provider)
    cloud.now("STARTING", submitted_at=time.time)
    succeed_after(cloud, time, BOOT_SECONDS + 60)
    watcher.follow()
    assert "HF_TOKEN must be set" in "\n".join(said)
    assert not cloud.terminated
    assert not cloud.cancelled


def test_a_pod_that_nobody_would_end_is_replaced_in_the_same_place_if_there_is_no_other(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    cloud.only = A40
    cloud.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED", id=8)

    time.during_sleep = live
    watcher.follow()
    assert (cloud.terminated, cloud.cancelled, cloud.submitted) == (["a"], [7], [(7, set())])


def test_a_run_that_no_machine_ever_comes_to_own_is_given_up_in_the_end(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    cloud.now("STARTING", submitted_at=time.time)

    def boot_in_vain() -> None:
        cloud.jobs = [
            dataclasses.replace(j, status="STARTING", submitted_at=time.time)
            if j.status == "RUNNING"
            else j
            for j in cloud.jobs
        ]

    time.during_sleep = boot_in_vain
    assert watcher.follow() == 1
    assert len(cloud.submitted) == TIMES_IN_VAIN
    assert cloud.cancelled == [7, 8, 9, 10]
    assert "submitted anew 3 times, no machine came to own the run" in "\n".join(said)
    assert not any(pod.alive for pod in cloud.listed)


def test_a_run_at_work_is_watched_though_its_controller_is_lost_and_started_anew_after_it(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    claim = claim_run(run, someone())
    beat(claim, stage="sft", step=6)
    cloud.now("FAILED_CONTROLLER", failure="the machine of the controller was restarted")
    start, rented_at = time.time, []

    def live() -> None:
        if time.time - start < 600:
            beat(claim, stage="sft", step=7)
        elif not cloud.submitted:
            cloud.listed = []
        if cloud.submitted:
            rented_at.append(time.time - start)
            cloud.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert rented_at[0] >= 660
    assert not cloud.terminated


def test_while_a_person_submits_the_run_it_is_not_submitted_anew(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    cloud.now("FAILED_CONTROLLER")
    other = contextlib.ExitStack()
    other.enter_context(submitting_alone(JOB.name))
    submitted_meanwhile: list[int] = []

    def leave() -> None:
        submitted_meanwhile.append(len(cloud.submitted))
        other.close()

    during(time, leave, lambda: cloud.now("SUCCEEDED", id=8))
    assert watcher.follow() == 0
    assert submitted_meanwhile == [0]
    assert len(cloud.submitted) == 1
    assert "is being submitted by another process here" in "\n".join(said)


def test_a_lost_controller_ends_no_run(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    claim_run(run, someone())
    cloud.now("FAILED_CONTROLLER", failure="the machine of the controller was restarted")
    during(time, lambda: cloud.now("SUCCEEDED", id=8))
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([], [(7, set())])
    assert "the machine of the controller was restarted" in "\n".join(said)


def test_a_job_cancelled_to_start_anew_is_submitted_however_often_that_fails(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    watcher.provider = dataclasses.replace(watcher.provider, submit=failing_at_first(cloud))
    cloud.now("STARTING", submitted_at=time.time - BOOT_SECONDS)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, {A40})])


def test_a_submission_that_only_seemed_to_fail_is_not_repeated(
    watcher: Watcher, cloud: Cloud, time: FakeClock
) -> None:
    def submit(task: Any, name: str) -> int:
        cloud.submit(task, name)
        raise PionError("SkyPilot could not submit: timed out")

    watcher.provider = dataclasses.replace(watcher.provider, submit=submit)
    cloud.now("STARTING", submitted_at=time.time)
    looks_since: list[float] = []

    def live() -> None:
        if cloud.submitted:
            looks_since.append(time.time)
        if len(looks_since) > 1:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert len(cloud.submitted) == 1


@pytest.mark.parametrize("fails", ["cancel", "managed_jobs"])
def test_a_job_that_is_cancelled_is_submitted_anew_even_if_its_end_could_not_be_seen(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, fails: str
) -> None:
    failures = [PionError("SkyPilot could not: timed out") for _ in range(3)]

    def cancel(ids: Collection[int]) -> None:
        cloud.cancel(ids)
        if fails == "cancel" and failures:
            raise failures.pop()

    def managed_jobs(name: str) -> list[ManagedJob]:
        if fails == "managed_jobs" and cloud.cancelled and failures:
            raise failures.pop()
        return cloud.managed_jobs(name)

    watcher.provider = dataclasses.replace(
        watcher.provider, cancel=cancel, managed_jobs=managed_jobs
    )
    cloud.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, {A40})])


def test_a_job_that_ends_well_before_it_could_be_cancelled_is_not_submitted_anew(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    def cancel(ids: Collection[int]) -> None:
        cloud.now("SUCCEEDED")

    watcher.provider = dataclasses.replace(watcher.provider, cancel=cancel)
    cloud.now("STARTING", submitted_at=time.time)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert not cloud.submitted
    assert "managed job 7 has ended by itself meanwhile, as SUCCEEDED" in "\n".join(said)


def test_one_look_submits_what_it_has_ended_though_that_fails_at_first(
    watcher: Watcher, cloud: Cloud, run: RunState
) -> None:
    watcher.provider = lost_controller(cloud, failing_at_first(cloud))
    assert watcher.look_once() == 1
    assert cloud.submitted == [(7, set())]


def test_one_look_that_can_not_submit_what_it_has_ended_says_so(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    def submit(task: Any, name: str) -> int:
        raise PionError("SkyPilot could not submit: timed out")

    watcher.provider = lost_controller(cloud, submit)
    start = time.time
    with pytest.raises(PionError, match=r"timed out managed job 7 was being .*pion launch") as e:
        watcher.look_once()
    assert f"`pion rentals {run.store.url}/demo`" in str(e.value)
    assert time.time - start < CANCEL_SECONDS + 60


def test_a_lost_controller_without_the_secrets_to_start_anew_ends_the_watch(
    watcher: Watcher, cloud: Cloud, run: RunState, said: list[str]
) -> None:
    watcher.provider = without_its_secrets(watcher.provider)
    claim_run(run, someone())
    cloud.now("FAILED_CONTROLLER")
    assert watcher.follow() == 1
    assert "HF_TOKEN must be set" in "\n".join(said)


def test_what_can_not_be_started_anew_is_said_once(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    watcher.provider = without_its_secrets(watcher.provider)
    claim_run(run, someone())
    cloud.listed = []
    succeed_after(cloud, time, UNNOTICED_SECONDS + 60)
    assert watcher.follow() == 0
    assert not cloud.cancelled
    assert len([line for line in said if "HF_TOKEN must be set" in line]) == 1
    assert len([e for e in read_events(run.store, run.name) if e["event"] == "watch"]) == 1


def test_whoever_leaves_while_the_run_is_submitted_anew_is_not_told_that_it_goes_on(
    run: RunState,
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def submit(task: Any, name: str) -> int:
        raise KeyboardInterrupt

    provider = lost_controller(cloud, submit)
    monkeypatch.setattr(Provider, "real", lambda: provider)
    claim_run(run, someone())
    assert follow_or_leave(run, JOB.name, JOB.id) == 130
    out = capsys.readouterr().out
    assert "goes on\n" not in out
    assert "managed job 7 was being cancelled to be submitted anew" in out
    assert f"pion rentals {run.store.url}/demo" in out
