"""`pion watch`: what is done about what is wrong with a rental, and what a person is told."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.cost.by_cause import costs_of
from pipeline.rent.managed.diagnose import (
    BOOT_SECONDS,
    HANG_SECONDS,
    LOST_BOOT_SECONDS,
    Attempt,
    Place,
)
from pipeline.rent.managed.lock import alone
from pipeline.rent.managed.lookout import each_once, machines_so_far, place_of
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.watch import Watcher, follow_or_leave
from pipeline.state.claim import claim_run
from pipeline.state.metrics import EventLog, read_events
from pipeline.state.records import Head
from pipeline.state.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import ask_stop
from pipeline.state.stores import FileStore, StoreError
from tests.pipeline.rent.managed.test_diagnose import A40, A4000, JOB, job
from tests.support.clock import FakeClock
from tests.support.states import someone
from tests.support.watched_rental import Cloud, beat, during, succeed, succeed_after

TASK = "name: pion-demo\n---\nenvs:\n  PION_LAUNCH_ID: 0123abcd\nrun: pion run\n"


def test_a_job_that_ends_well_is_followed_to_its_end(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    claim = claim_run(run, someone(host="pod-1"))

    def train() -> None:
        beat(claim, stage="sft", step=6, steps=10, loss=1.25, tokens_per_second=900.0)

    during(time, train, lambda: claim.release(), succeed(cloud))
    assert watcher.follow() == 0
    text = "\n".join(said)
    assert "managed job 7: RUNNING on RunPod CA, 1x[spot](A40:1, cpus=9, mem=50)" in text
    assert "on pod-1 owns the run (epoch 3)" in text
    assert "sft step 6/10, loss 1.2500, 900 tokens/s, saved: sft step 5" in text
    assert "managed job 7 is done" in said[-1]
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


def test_a_rental_that_ended_without_its_machine_saying_so_is_over_for_other_computers(
    watcher: Watcher, cloud: Cloud, run: RunState
) -> None:
    write_rental_note(run, RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 1), None)
    cloud.now("FAILED_NO_RESOURCE", task=TASK)
    watcher.follow()
    assert read_rental_note(run)[0] is None


def test_a_window_that_only_shows_a_rental_does_not_call_it_over(
    run: RunState, cloud: Cloud, said: list[str]
) -> None:
    write_rental_note(run, RentalNote(0.0, "desk", "1a2b3c4d", "0123abcd", 1), None)
    cloud.now("CANCELLED", task=TASK)  # by another window, which submits it anew
    onlooker = Watcher(run, JOB.name, JOB.id, said.append, acting=False, provider=cloud.provider())
    onlooker.follow()
    assert read_rental_note(run)[0] is not None


def test_a_run_that_was_stopped_after_its_controller_was_lost_ends_with_4_and_without_a_machine(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    claim = claim_run(run, someone())
    beat(claim, stage="sft", step=6)
    cloud.now("FAILED_CONTROLLER")

    def stop() -> None:
        ask_stop(run, "pion stop")
        claim.release()

    during(time, lambda: None, stop)
    assert watcher.follow() == 4
    assert (cloud.terminated, cloud.submitted) == (["a"], [])


def test_a_dead_pod_is_terminated_at_the_first_look_and_the_run_remembers_why(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    claim_run(run, someone())
    cloud.listed = [cloud.pod("x", "EXITED"), cloud.pod("other", "EXITED", job_id=8)]
    during(time, succeed(cloud))
    watcher.follow()
    assert cloud.terminated == ["x"]
    text = "\n".join(said)
    assert "dead pod: pod x is EXITED in RunPod's list while SkyPilot says RUNNING" in text
    (event,) = [e for e in read_events(run.store, run.name) if e["event"] == "watch"]
    assert (event["what"], event["done"]) == ("dead pod", ["terminated pod x"])


def test_a_second_window_only_says_what_is_wrong(
    run: RunState, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    cloud.listed = [cloud.pod("x", "EXITED")]
    onlooker = Watcher(run, JOB.name, JOB.id, said.append, acting=False, provider=cloud.provider())
    during(time, lambda: None, lambda: None, succeed(cloud))
    onlooker.follow()
    assert not cloud.terminated
    assert len([line for line in said if "dead pod" in line]) == 1  # not at every look


def test_only_one_window_keeps_a_rental_going() -> None:
    with alone("pion-demo") as first, alone("pion-demo") as second, alone("pion-other") as other:
        assert (first(), second(), other()) == (True, False, True)
        assert (first(), second()) == (True, False)
    with alone("pion-demo") as again:
        assert again()


def test_a_second_window_acts_once_the_first_has_gone(
    run: RunState,
    cloud: Cloud,
    time: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Provider, "real", cloud.provider)
    cloud.listed = [cloud.pod("x", "EXITED")]
    first = contextlib.ExitStack()
    assert first.enter_context(alone(JOB.name))()
    done_while_the_first_acted: list[str] = []

    def leave() -> None:
        done_while_the_first_acted.extend(cloud.terminated)
        first.close()

    during(time, leave, succeed(cloud))
    assert follow_or_leave(run, JOB.name, JOB.id) == 0
    assert not done_while_the_first_acted
    assert cloud.terminated == ["x"]
    out = capsys.readouterr().out
    assert "another window keeps this run going" in out
    assert "the other window has gone: from here on this one keeps the run going" in out


def test_heartbeats_without_a_step_for_a_quarter_of_an_hour_are_a_hang(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    claim = claim_run(run, someone())
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
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    claim = claim_run(run, someone())
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
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    claim = claim_run(run, someone())  # its status names no step
    start = time.time

    def live() -> None:
        claim.heartbeat.beat()
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
    assert (cloud.cancelled, cloud.submitted) == ([7], [(7, {A40})])
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
    succeed_after(cloud, time, BOOT_SECONDS + 60)
    assert watcher.follow() == 0
    assert not cloud.submitted
    assert "no machine to be had" in "\n".join(said)


def test_a_pod_that_comes_after_a_long_wait_for_any_has_its_own_time_to_boot(
    watcher: Watcher, cloud: Cloud, time: FakeClock
) -> None:
    cloud.listed = []
    cloud.now("STARTING", submitted_at=time.time)
    start = time.time

    def live() -> None:
        if time.time - start > 2 * BOOT_SECONDS and not cloud.listed:
            cloud.listed = [cloud.pod("late", "CREATED")]
        if time.time - start > 3 * BOOT_SECONDS - 60:
            cloud.now("SUCCEEDED")

    time.during_sleep = live
    assert watcher.follow() == 0
    assert not cloud.terminated
    assert not cloud.submitted


def test_a_pod_that_can_not_see_the_request_to_stop_is_ended_with_its_job(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    ask_stop(run, "pion stop")
    cloud.now("STARTING", submitted_at=time.time)
    start = time.time
    succeed_after(cloud, time, 2 * BOOT_SECONDS)
    assert watcher.follow() == 4
    assert BOOT_SECONDS <= time.time - start < BOOT_SECONDS + 60
    assert (cloud.terminated, cloud.cancelled, cloud.submitted) == (["a"], [7], [])
    assert "terminated pod a; cancelled managed job 7" in "\n".join(said)


def test_no_machine_is_waited_for_by_a_run_that_was_asked_to_stop(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    ask_stop(run, "pion stop")
    cloud.now("RECOVERING")
    cloud.listed = []
    assert watcher.follow() == 4
    assert cloud.cancelled == [7]
    assert "asked to stop (pion stop), so no other machine is needed" in "\n".join(said)


def test_a_run_that_has_hopped_is_not_taken_for_one_that_was_asked_to_stop(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    claim_run(run, someone(launch_id="launch-old")).release()
    ask_stop(run, "pion hop to pod-new", except_launch="0123abcd")
    cloud.now("STARTING", submitted_at=time.time, task=TASK)

    def live() -> None:
        if cloud.submitted:
            cloud.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == 0
    assert (cloud.cancelled, len(cloud.submitted)) == ([7], 1)  # started anew, not ended


def test_a_request_to_stop_is_never_undone(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    claim_run(run, someone())
    ask_stop(run, "pion stop")
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
    assert "managed job 8 is done" in said[-1]


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
    assert "managed job 7 is done" in said[-1]


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
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, monkeypatch: Any
) -> None:
    read = run.store.read_versioned

    def down(key: str) -> Any:
        raise StoreError("read", key, "no route to host")

    monkeypatch.setattr(run.store, "read_versioned", down)
    during(
        time,
        lambda: monkeypatch.setattr(run.store, "read_versioned", read),
        succeed(cloud),
    )
    assert watcher.follow() == 0


def test_one_look_fails_if_anything_is_wrong_and_mends_it(watcher: Watcher, cloud: Cloud) -> None:
    assert watcher.look_once() == 0
    cloud.listed = [cloud.pod("x", "EXITED")]
    assert watcher.look_once() == 1
    assert cloud.terminated == ["x"]


def test_the_machines_of_a_run_come_from_its_store_each_once(run: RunState) -> None:
    events = EventLog(run.store, run.name, 9, now=lambda: 50.0)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True}
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)  # once more
    events.append("machine", id="two", managed_job="7", **about)
    events.append("machine", id="three", managed_job="8", **about)
    events.append("machine", id="four", **about)  # rented by hand
    events.flush()
    assert machines_so_far(run, 7) == [Attempt(A40, 10.0), Attempt(A40, 50.0)]


# ---------------------------------------------------------------- pods that come to nothing


def test_a_machine_that_the_store_and_skypilot_know_is_one() -> None:
    claimed = [Attempt(A40, 100.0), Attempt(A4000, 500.0)]
    assert each_once(claimed, [Attempt(A40, 160.0), Attempt(A4000, 570.0)]) == claimed
    assert each_once(claimed, []) == claimed  # nobody watched
    vain = Attempt(A40, 300.0)  # it ran, and never came to claim the run
    assert each_once(claimed, [Attempt(A40, 160.0), vain, Attempt(A4000, 570.0)]) == [
        claimed[0],
        vain,
        claimed[1],
    ]
    assert each_once([], [vain]) == [vain]


def test_a_machine_that_claims_the_run_before_skypilot_says_that_it_runs_counts_once(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    def claims() -> None:
        events = EventLog(run.store, run.name, claim_run(run, someone(), take_over=True).epoch)
        about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True, "managed_job": "7"}
        events.append("machine", id=f"pod{time.time}", rented_at=time.time, **about)
        events.flush()

    def runs(recoveries: int) -> Callable[[], None]:
        return lambda: cloud.now("RUNNING", recoveries=recoveries, recovered_at=time.time)

    def recovers() -> None:
        cloud.now("RECOVERING")

    cloud.now("STARTING")
    during(time, claims, runs(0), recovers, claims, runs(1), recovers, succeed(cloud))
    assert watcher.follow() == 0
    assert "bad place" not in "\n".join(said)  # two machines


def lost_pods(run: RunState) -> list[dict[str, Any]]:
    """What the run's store says of pods that never owned it."""
    return [e for e in read_events(run.store, run.name) if e["event"] == "lost"]


def lose(cloud: Cloud) -> Callable[[], None]:
    """RunPod lists no pod of it any more, and SkyPilot is after another."""

    def gone() -> None:
        cloud.listed = []
        cloud.now("RECOVERING")

    return gone


def owns_the_run(run: RunState, pod: str) -> None:
    """The pod has claimed the run, and said so."""
    events = EventLog(run.store, run.name, claim_run(run, someone(host=pod)).epoch)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "count": 1, "spot": True}
    times = {"rented_at": run.clock.now(), "phases": {}, "price": 0.36, "host": pod}
    events.append("machine", id=pod, managed_job="7", **about, **times)
    events.flush()


def test_a_pod_that_goes_before_it_owns_the_run_is_kept_with_what_it_cost(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    start = time.time
    cloud.now("STARTING", submitted_at=start)
    during(time, lambda: None, lose(cloud), succeed(cloud))
    watcher.follow()
    (event,) = lost_pods(run)
    assert (event["id"], event["gpu"], event["managed_job"]) == ("a", "A40", "7")
    assert (event["begin"], event["end"], event["price"]) == (start, start + 10, 0.36)


def test_what_a_machine_costs_that_never_owned_the_run_is_in_what_a_person_is_told(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, said: list[str]
) -> None:
    claim = claim_run(run, someone(host="desk"))
    beat(claim, stage="sft", step=6)
    cloud.listed = [cloud.pod("a", "RUNNING", created=time.time - 3600)]
    during(time, lambda: cloud.now("FAILED"))
    watcher.follow()
    assert "sft step 6, saved: sft step 5 ($0.36 so far)" in "\n".join(said)
    assert "ended as FAILED ($0.36 so far)" in said[-1]


@pytest.mark.parametrize("status", ["EXITED", "TERMINATED"])
def test_a_pod_that_has_exited_costs_no_more_though_it_is_listed(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, status: str
) -> None:
    start = time.time

    def exits() -> None:
        cloud.listed = [cloud.pod("a", status)]

    during(time, exits, lambda: None, succeed(cloud))
    watcher.follow()
    (event,) = lost_pods(run)
    assert (event["begin"], event["end"]) == (start, start)


def test_a_pod_costs_from_when_runpod_says_that_it_was_rented(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    cloud.listed = [cloud.pod("a", "RUNNING", created=time.time - 90)]
    during(time, lose(cloud), succeed(cloud))
    watcher.follow()
    (event,) = lost_pods(run)
    assert event["end"] - event["begin"] == 90


def test_the_pod_of_a_job_that_has_ended_is_kept_too_as_nobody_looks_again(
    watcher: Watcher, cloud: Cloud, run: RunState
) -> None:
    cloud.now("FAILED_SETUP")
    assert watcher.look_once() == 1
    assert [event["id"] for event in lost_pods(run)] == ["a"]


def test_a_pod_that_owned_the_run_speaks_for_itself(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    during(time, lambda: owns_the_run(run, "a"), lose(cloud), succeed(cloud))
    watcher.follow()
    assert lost_pods(run) == []


def test_every_lost_pod_is_kept_and_those_of_other_runs_are_not(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock
) -> None:
    other = dataclasses.replace(cloud.pod("x", "RUNNING"), name="pion-other-7-0123abcd-head")
    cloud.listed.append(other)

    def another() -> None:
        cloud.listed = [cloud.pod("b", "RUNNING")]

    during(time, another, lose(cloud), succeed(cloud))
    watcher.follow()
    assert {event["id"] for event in lost_pods(run)} == {"a", "b"}


def test_two_windows_keep_a_lost_pod_once(
    run: RunState, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    windows = [
        Watcher(run, JOB.name, JOB.id, said.append, acting=acting, provider=cloud.provider())
        for acting in (True, False)
    ]
    for window in windows:
        window.lookout.look()
        time.time += 5
    lose(cloud)()
    for window in windows:
        window.lookout.look()
    assert len(lost_pods(run)) == 1


def test_a_pod_lost_before_any_machine_owned_the_run_is_kept_too(
    tmp_path: Path, cloud: Cloud, time: FakeClock, said: list[str]
) -> None:
    new = RunState(FileStore(tmp_path / "new"), "demo", time.clock())
    cloud.now("STARTING", submitted_at=time.time)
    during(time, lambda: None, lose(cloud), succeed(cloud))
    Watcher(new, JOB.name, JOB.id, said.append, provider=cloud.provider()).follow()
    assert new.read() is None
    assert costs_of(new, Head(), time.time).dollars == pytest.approx(0.001)  # 10 s at $0.36
    claim_run(new, someone()).release()
    head = new.read()
    assert head is not None
    assert costs_of(new, head, time.time).dollars == pytest.approx(0.001)


def test_a_store_that_is_down_is_told_of_a_lost_pod_later(
    watcher: Watcher, cloud: Cloud, run: RunState, time: FakeClock, monkeypatch: Any
) -> None:
    swap = run.store.compare_and_swap

    def down(*arguments: Any) -> Any:
        raise StoreError("write", "events", "no route to host")

    def fails() -> None:
        lose(cloud)()
        monkeypatch.setattr(run.store, "compare_and_swap", down)

    start = time.time
    up = partial(monkeypatch.setattr, run.store, "compare_and_swap", swap)
    during(time, fails, lambda: None, up, lambda: None, succeed(cloud))
    watcher.follow()
    (event,) = lost_pods(run)
    assert event["end"] == start


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
    run: RunState,
    cloud: Cloud,
    time: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Provider, "real", cloud.provider)
    claim_run(run, someone())
    cloud.now("FAILED_CONTROLLER")  # so it is submitted anew
    during(time, leave)
    assert follow_or_leave(run, JOB.name, JOB.id) == 0
    out = capsys.readouterr().out
    assert "managed job 8 goes on" in out
    assert "sky jobs logs 8" in out
    assert f"pion stop {run.store.url}/demo" in out
