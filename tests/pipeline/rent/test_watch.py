"""`pion watch`: what is done about what is wrong with a rental, and what a person is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput, PionError
from pipeline.rent.managed.diagnose import (
    BOOT_SECONDS,
    HANG_SECONDS,
    LOST_BOOT_SECONDS,
    Attempt,
    Place,
)
from pipeline.rent.managed.look import machines_so_far, place_of
from pipeline.rent.managed.managed_jobs import ManagedJob, cluster_name
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.watch import Provider, Watcher, alone, follow_or_leave
from pipeline.state.claim import Claim
from pipeline.state.head import RunState
from pipeline.state.metrics import EventLog, read_events
from pipeline.state.requests import ask_stop
from pipeline.state.stores import FileStore, StoreError
from tests.pipeline.light_run import light_run
from tests.pipeline.rent.test_diagnose import A40, A4000, JOB, job
from tests.pipeline.state.conftest import FakeClock, someone


class Cloud:
    """SkyPilot and RunPod as a watcher sees them: one job, its pods, and what was ordered."""

    def __init__(self) -> None:
        self.jobs = [JOB]
        self.listed: list[Pod] = [self.pod("a", "RUNNING")]
        self.terminated: list[str] = []
        self.cancelled: list[int] = []
        self.submitted: list[Any] = []
        self.only: Place | None = None
        self.down = False

    def pod(self, name: str, status: str, job_id: int = 7) -> Pod:
        return Pod(name, f"{cluster_name(JOB.name, job_id)}-0123abcd-head", status)

    def provider(self) -> Provider:
        return Provider(
            managed_jobs=self.managed_jobs,
            list_pods=lambda: self.listed,
            terminate_pod=self.terminate,
            cancel=self.cancel,
            make_again=self.make_again,
            submit=self.submit,
        )

    def managed_jobs(self, name: str) -> list[ManagedJob]:
        if self.down:
            raise PionError("SkyPilot could not list the managed jobs.")
        return sorted((j for j in self.jobs if j.name == name), key=lambda j: -j.id)

    def terminate(self, pod: str) -> None:
        self.terminated.append(pod)
        self.listed = [p for p in self.listed if p.id != pod]

    def cancel(self, ids: Collection[int]) -> None:
        self.cancelled += ids
        self.jobs = [
            dataclasses.replace(j, status="CANCELLED") if j.id in ids else j for j in self.jobs
        ]

    def make_again(self, job: ManagedJob, avoid: Collection[Place]) -> Any:
        if self.only is not None and self.only in avoid:
            raise BadInput("the YAML allows nothing but that")
        return job.id, set(avoid)

    def submit(self, task: Any, name: str) -> int:
        assert not any(job.live for job in self.jobs)  # never two machines at a time
        self.submitted.append(task)
        new = max(job.id for job in self.jobs) + 1
        self.jobs.append(dataclasses.replace(JOB, id=new))
        self.listed = [self.pod("b", "RUNNING", new)]
        return new

    def now(self, status: str, **changes: Any) -> None:
        self.jobs = [dataclasses.replace(self.jobs[-1], status=status, **changes)]


@pytest.fixture
def time() -> FakeClock:
    return FakeClock()


@pytest.fixture
def demo(tmp_path: Path, time: FakeClock) -> RunState:
    """A released run that has work left."""
    return light_run(FileStore(tmp_path), clock=time.clock())


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watcher(demo: RunState, cloud: Cloud, said: list[str]) -> Watcher:
    return Watcher(demo, JOB.name, JOB.id, said.append, provider=cloud.provider())


def beat(claim: Claim, **status: Any) -> None:
    claim.report(**status)
    claim._beat()


def during(time: FakeClock, *events: Callable[[], None]) -> None:
    """After each look one of the events happens; after the last, nothing more does."""
    left = list(events)
    time.during_sleep = lambda: left.pop(0)() if left else None


def succeed(cloud: Cloud) -> Callable[[], None]:
    return lambda: cloud.now("SUCCEEDED")


def test_a_job_that_ends_well_is_followed_to_its_end(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, said: list[str]
) -> None:
    claim = demo.claim(someone(host="pod-1"))

    def train() -> None:
        beat(claim, stage="sft", step=6, steps=10, loss=1.25, tokens_per_second=900.0)

    during(time, train, lambda: claim.release(), succeed(cloud))
    assert watcher.follow() == 0
    text = "\n".join(said)
    assert "managed job 7: RUNNING on RunPod CA, 1x[spot](A40:1, cpus=9, mem=50)" in text
    assert "on pod-1 owns the run (epoch 3)" in text
    assert "sft step 6/10, loss 1.2500, 900 tokens/s, saved: sft step 5" in text
    assert said[-1].endswith("managed job 7 is done")
    assert not cloud.terminated
    assert not cloud.cancelled


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("Job exited with exit code 4 (user program failure).", 4, "stopped, with its state saved"),
        ("Job exited with exit code 2 (user program failure).", 2, "failed with exit code 2"),
        ("Task exited with exit codes [3] (…)", 3, "failed with exit code 3"),
        ("To see the details, run: …", 1, "ended as FAILED"),
    ],
)
def test_a_job_that_fails_gives_its_exit_code_and_where_its_output_is(
    watcher: Watcher, cloud: Cloud, said: list[str], failure: str, code: int, words: str
) -> None:
    cloud.now("FAILED", failure=failure)
    assert watcher.follow() == code
    assert words in said[-1]
    assert "sky jobs logs 7" in said[-1]


def test_a_dead_pod_is_terminated_at_the_first_look_and_the_run_remembers_why(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, said: list[str]
) -> None:
    demo.claim(someone())
    cloud.listed = [cloud.pod("x", "EXITED"), cloud.pod("other", "EXITED", job_id=8)]
    during(time, succeed(cloud))
    watcher.follow()
    assert cloud.terminated == ["x"]
    text = "\n".join(said)
    assert "dead pod: pod x is EXITED in RunPod's list while SkyPilot says RUNNING" in text
    (event,) = [e for e in read_events(demo.store, demo.name) if e["event"] == "watch"]
    assert (event["what"], event["done"]) == ("dead pod", ["terminated pod x"])


def test_a_second_window_only_says_what_is_wrong(
    demo: RunState, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    cloud.listed = [cloud.pod("x", "EXITED")]
    onlooker = Watcher(demo, JOB.name, JOB.id, said.append, acting=False, provider=cloud.provider())
    during(time, lambda: None, lambda: None, succeed(cloud))
    onlooker.follow()
    assert not cloud.terminated
    assert len([line for line in said if "dead pod" in line]) == 1  # not at every look


def test_only_one_window_keeps_a_rental_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with alone("pion-demo") as first, alone("pion-demo") as second, alone("pion-other") as other:
        assert (first, second, other) == (True, False, True)
    with alone("pion-demo") as again:
        assert again


def test_heartbeats_without_a_step_for_a_quarter_of_an_hour_are_a_hang(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, said: list[str]
) -> None:
    claim = demo.claim(someone())
    start = time.time

    def live() -> None:
        beat(claim, stage="sft", step=6)
        if cloud.terminated:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert cloud.terminated == ["a"]
    assert HANG_SECONDS <= time.time - start < HANG_SECONDS + 60
    assert "hang: the heartbeat goes on, but there was no step for 15 min" in "\n".join(said)


def test_a_run_whose_store_was_down_may_catch_up_before_it_counts_as_hanging(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock
) -> None:
    claim = demo.claim(someone())
    start = time.time

    def live() -> None:
        since = time.time - start
        if not 100 < since < 2000:  # no heartbeat gets through meanwhile
            beat(claim, stage="sft", step=6)
        if since > 2000 + HANG_SECONDS - 60:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert not cloud.terminated


def test_evaluation_at_the_end_is_no_hang(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock
) -> None:
    claim = demo.claim(someone())  # its status names no step
    start = time.time

    def live() -> None:
        claim._beat()
        if time.time - start > HANG_SECONDS + 120:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    watcher.follow()
    assert not cloud.terminated


def test_a_boot_that_never_ends_is_started_anew_elsewhere(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    cloud.now("STARTING", submitted_at=time.time - 5)
    start = time.time

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, set())])
    assert time.time - start < BOOT_SECONDS + 60
    assert "submitted the run anew as managed job 8" in "\n".join(said)


def test_a_pod_that_is_lost_while_it_boots_is_not_waited_for_without_end(
    watcher: Watcher, cloud: Cloud, time: FakeClock
) -> None:
    cloud.now("STARTING", submitted_at=time.time)
    start = time.time

    def live() -> None:
        if time.time - start > 60:
            cloud.listed = []
        if cloud.submitted:
            cloud.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, set())])
    assert LOST_BOOT_SECONDS <= time.time - start < LOST_BOOT_SECONDS + 120


def test_waiting_for_a_machine_to_be_had_is_no_reason_to_start_anew(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    cloud.listed = []
    cloud.now("STARTING", submitted_at=time.time)
    start = time.time
    time.during_sleep = lambda: (
        cloud.now("SUCCEEDED") if time.time - start > BOOT_SECONDS + 60 else None
    )
    assert watcher.follow() == 0
    assert not cloud.submitted
    assert "no machine to be had" in "\n".join(said)


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
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, said: list[str]
) -> None:
    cloud.only = A40
    claim = demo.claim(someone())
    events = EventLog(demo.store, demo.name, claim.epoch)
    for age in (900, 600, 300):
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True}
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
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock
) -> None:
    claim = demo.claim(someone())
    events = EventLog(demo.store, demo.name, claim.epoch)
    for age in (2700, 2600, 2500):
        events.append("machine", id=f"pod{age}", rented_at=time.time - age, gpu="A40")
    events.append("machine", id="last", rented_at=time.time - 2450, gpu="A40")
    events.flush()
    cloud.now("STARTING", submitted_at=time.time - BOOT_SECONDS)
    time.time += BOOT_SECONDS
    during(time, succeed(cloud))
    watcher.follow()
    assert len(cloud.submitted) == 1


def test_a_lost_controller_ends_no_run(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, said: list[str]
) -> None:
    demo.claim(someone())
    cloud.now("FAILED_CONTROLLER", failure="the machine of the controller was restarted")
    during(time, lambda: cloud.now("SUCCEEDED", id=8))
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([], [(7, set())])
    assert "the machine of the controller was restarted" in "\n".join(said)


def test_a_job_cancelled_to_start_anew_is_submitted_however_often_that_fails(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, monkeypatch: Any
) -> None:
    failures = [PionError("SkyPilot could not submit: timed out") for _ in range(3)]

    def submit(task: Any, name: str) -> int:
        if failures:
            raise failures.pop()
        return cloud.submit(task, name)

    watcher.provider = dataclasses.replace(watcher.provider, submit=submit)
    cloud.now("STARTING", submitted_at=time.time - BOOT_SECONDS)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, set())])


def test_a_submission_that_only_seemed_to_fail_is_not_repeated(
    watcher: Watcher, cloud: Cloud, time: FakeClock
) -> None:
    def submit(task: Any, name: str) -> int:
        cloud.submit(task, name)
        raise PionError("SkyPilot could not submit: timed out")

    watcher.provider = dataclasses.replace(watcher.provider, submit=submit)
    cloud.now("STARTING", submitted_at=time.time)
    time.time += BOOT_SECONDS
    during(time, lambda: None, succeed(cloud))
    assert watcher.follow() == 0
    assert len(cloud.submitted) == 1


def test_a_lost_controller_without_the_secrets_to_start_anew_ends_the_watch(
    watcher: Watcher, cloud: Cloud, demo: RunState, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def make_again(job: ManagedJob, avoid: Collection[Place]) -> Any:
        raise BadInput("HF_TOKEN must be set in the environment")

    watcher.provider = dataclasses.replace(watcher.provider, make_again=make_again)
    demo.claim(someone())
    cloud.now("FAILED_CONTROLLER")
    assert watcher.follow() == 1
    assert "HF_TOKEN must be set" in "\n".join(said)


def test_a_request_to_stop_is_never_undone(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock
) -> None:
    demo.claim(someone())
    ask_stop(demo, "pion stop")
    cloud.listed = [cloud.pod("x", "EXITED")]
    during(time, lambda: cloud.now("FAILED", failure="Job exited with exit code 4"))
    assert watcher.follow() == 4
    assert not cloud.terminated
    assert not cloud.submitted


def test_a_window_that_follows_a_run_goes_with_it_when_it_hops(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    def hop() -> None:
        cloud.jobs.append(dataclasses.replace(JOB, id=8))

    def old_one_ends() -> None:
        cloud.jobs[0] = job("FAILED", failure="Job exited with exit code 4")

    def done() -> None:
        cloud.jobs[1] = dataclasses.replace(JOB, id=8, status="SUCCEEDED")

    during(time, hop, old_one_ends, done)
    assert watcher.follow() == 0
    assert said[-1].endswith("managed job 8 is done")


def test_a_hop_that_fails_leaves_the_window_with_the_old_job(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    def hop() -> None:
        cloud.jobs.append(dataclasses.replace(JOB, id=8, status="STARTING"))

    def fails() -> None:
        cloud.jobs[1] = dataclasses.replace(cloud.jobs[1], status="FAILED_NO_RESOURCE")

    def done() -> None:
        cloud.jobs[0] = job("SUCCEEDED")

    during(time, hop, fails, done)
    assert watcher.follow() == 0
    assert said[-1].endswith("managed job 7 is done")


def test_what_can_not_be_asked_now_is_said_once_and_asked_again(
    watcher: Watcher, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    cloud.down = True

    def back() -> None:
        cloud.down = False

    during(time, lambda: None, lambda: None, back, succeed(cloud))
    assert watcher.follow() == 0
    assert len([line for line in said if "can't tell at the moment" in line]) == 1


def test_a_store_that_is_down_ends_no_watch(
    watcher: Watcher, cloud: Cloud, demo: RunState, time: FakeClock, monkeypatch: Any
) -> None:
    read = demo.store.read_versioned

    def down(key: str) -> Any:
        raise StoreError("read", key, "no route to host")

    monkeypatch.setattr(demo.store, "read_versioned", down)
    during(
        time,
        lambda: monkeypatch.setattr(demo.store, "read_versioned", read),
        succeed(cloud),
    )
    assert watcher.follow() == 0


def test_one_look_fails_if_anything_is_wrong_and_mends_it(watcher: Watcher, cloud: Cloud) -> None:
    assert watcher.look_once() == 0
    cloud.listed = [cloud.pod("x", "EXITED")]
    assert watcher.look_once() == 1
    assert cloud.terminated == ["x"]


def test_the_machines_of_a_run_come_from_its_store_each_once(demo: RunState) -> None:
    events = EventLog(demo.store, demo.name, 9, now=lambda: 50.0)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True}
    events.append("machine", id="one", rented_at=10.0, **about)
    events.append("machine", id="one", rented_at=10.0, **about)  # its process was restarted
    events.append("machine", id="two", **about)
    events.flush()
    assert machines_so_far(demo) == [Attempt(A40, 10.0), Attempt(A40, 50.0)]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("1x[spot](A40:1, cpus=9, mem=50)", A40),
        ("1x(A40:1, cpus=9)", dataclasses.replace(A40, spot=False)),
        ("1x[spot](gpus=RTXA4000:1, 1x_RTXA4000_SEC..., ...)", A4000),
        ("1x(cpus=2, mem=8)", Place("RunPod", "CA", None, spot=False)),
        (None, Place("RunPod", "CA", None, spot=False)),
    ],
)
def test_a_machine_is_read_from_skypilots_words(words: str | None, place: Place) -> None:
    assert place_of(dataclasses.replace(JOB, resources=words)) == place


def test_whoever_leaves_is_told_the_job_that_goes_on(
    demo: RunState,
    cloud: Cloud,
    time: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Provider, "real", cloud.provider)
    demo.claim(someone())
    cloud.now("FAILED_CONTROLLER")  # so it is submitted anew
    during(time, leave)
    assert follow_or_leave(demo, JOB.name, JOB.id) == 0
    out = capsys.readouterr().out
    assert "managed job 8 goes on" in out
    assert "sky jobs logs 8" in out
    assert f"pion stop {demo.store.url}/demo" in out
