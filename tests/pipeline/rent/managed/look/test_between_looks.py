"""The events of a run keep the cost of pods that end before they own the run."""

import dataclasses
from functools import partial

import pytest

from pipeline.cost.costs import costs_of
from pipeline.rent.managed.look.between_looks import claimed_machines, each_once
from pipeline.rent.managed.look.diagnose import Attempt
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.head import Head
from pipeline.state.rows.metrics import EventLog, read_events
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from tests.pipeline.rent.managed.look.test_diagnose import A40, A4000
from tests.support.fake_provider import JOB, beat, during, note_machine, succeed
from tests.support.states import someone


def lost_pods(run):
    """Return the events in the run's store about pods that never owned it."""
    return [e for e in read_events(run.store, run.name) if e["event"] == "lost"]


def lose(provider):
    """Return a function that removes the pod from RunPod's list and lets SkyPilot recover."""

    def gone():
        provider.listed = []
        provider.now("RECOVERING")

    return gone


def owns_the_run(run, pod):
    """Let the pod claim the run and report itself."""
    epoch = claim_run(run, someone(host=pod)).epoch
    times = {"rented_at": run.clock.now(), "phases": {}, "price": 0.36, "host": pod}
    note_machine(run, epoch, pod, managed_job="7", **times)


def test_a_pod_that_goes_before_it_owns_the_run_is_kept_with_what_it_cost(
    watcher, provider, run, time
):
    start = time.time
    provider.now("STARTING", submitted_at=start)
    during(time, lambda: None, lose(provider), succeed(provider))
    watcher.follow()
    (event,) = lost_pods(run)
    assert (event["id"], event["gpu"], event["managed_job"]) == ("a", "A40", "7")
    assert (event["begin"], event["end"], event["price"]) == (start, start + 10, 0.36)


def test_the_shown_cost_includes_a_machine_that_never_owned_the_run(
    watcher, provider, run, time, said
):
    claim = claim_run(run, someone(host="desk"))
    beat(claim, stage="sft", step=6)
    provider.listed = [provider.pod("a", "RUNNING", created=time.time - 3600)]
    during(time, lambda: provider.now("FAILED"))
    watcher.follow()
    assert "sft step 6, saved: sft step 5 ($0.36 so far)" in "\n".join(said)
    assert "stopped with status FAILED ($0.36 so far)" in said[-1]


@pytest.mark.parametrize("status", ["EXITED", "TERMINATED"])
def test_an_exited_pod_costs_nothing_more_although_it_is_still_listed(
    watcher, provider, run, time, status
):
    start = time.time

    def exits():
        provider.listed = [provider.pod("a", status)]

    during(time, exits, lambda: None, succeed(provider))
    watcher.follow()
    (event,) = lost_pods(run)
    assert (event["begin"], event["end"]) == (start, start)


def test_the_pod_of_an_ended_job_is_kept_too_because_this_is_the_last_look(watcher, provider, run):
    provider.now("FAILED_SETUP")
    assert watcher.look_once() == 1
    assert [event["id"] for event in lost_pods(run)] == ["a"]


def test_a_pod_that_owned_the_run_speaks_for_itself(watcher, provider, run, time):
    during(time, lambda: owns_the_run(run, "a"), lose(provider), succeed(provider))
    watcher.follow()
    assert lost_pods(run) == []


def test_every_lost_pod_is_kept_and_those_of_other_runs_are_not(watcher, provider, run, time):
    other = dataclasses.replace(provider.pod("x", "RUNNING"), name="pion-other-7-0123abcd-head")
    provider.listed.append(other)

    def another():
        provider.listed = [provider.pod("b", "RUNNING")]

    during(time, another, lose(provider), succeed(provider))
    watcher.follow()
    assert {event["id"] for event in lost_pods(run)} == {"a", "b"}


def test_two_windows_keep_a_lost_pod_once(run, provider, time, said):
    windows = [
        Watcher(run, JOB.name, JOB.id, said.append, provider, acting=acting)
        for acting in (True, False)
    ]
    for window in windows:
        window.lookout.look()
        time.time += 5
    lose(provider)()
    for window in windows:
        window.lookout.look()
    assert len(lost_pods(run)) == 1


def test_a_pod_lost_before_any_machine_owned_the_run_is_kept_too(tmp_path, provider, time, said):
    new = RunState(FileStore(tmp_path / "new"), "demo", time.clock())
    provider.now("STARTING", submitted_at=time.time)
    during(time, lambda: None, lose(provider), succeed(provider))
    Watcher(new, JOB.name, JOB.id, said.append, provider).follow()
    assert new.read() is None
    assert costs_of(new, Head(), time.time).dollars == pytest.approx(0.001)  # 10 s at $0.36
    claim_run(new, someone()).release()
    head = new.read()
    assert costs_of(new, head, time.time).dollars == pytest.approx(0.001)


def test_a_lost_pod_is_recorded_later_if_the_store_is_down(
    watcher, provider, run, time, monkeypatch
):
    swap = run.store.compare_and_swap

    def down(*arguments):
        raise StoreError("write", "events", "no route to host")

    def fails():
        lose(provider)()
        monkeypatch.setattr(run.store, "compare_and_swap", down)

    start = time.time
    up = partial(monkeypatch.setattr, run.store, "compare_and_swap", swap)
    during(time, fails, lambda: None, up, lambda: None, succeed(provider))
    watcher.follow()
    (event,) = lost_pods(run)
    assert event["end"] == start


# ---------------------------------------------------------------- the machines of a managed job


def test_the_machines_of_a_run_come_from_its_store_each_once(run):
    events = EventLog(run.store, run.name, 9, now=lambda: 50.0)
    about = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "spot": True}
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)
    events.append("machine", id="one", rented_at=10.0, managed_job="7", **about)  # a second claim
    events.append("machine", id="two", managed_job="7", **about)
    events.append("machine", id="three", managed_job="8", **about)
    events.append("machine", id="four", **about)  # rented without pion launch
    events.flush()
    assert claimed_machines(run, 7) == [Attempt(A40, 10.0), Attempt(A40, 50.0)]


def test_a_machine_that_the_store_and_skypilot_know_is_one():
    claimed = [Attempt(A40, 100.0), Attempt(A4000, 500.0)]
    assert each_once(claimed, [Attempt(A40, 160.0), Attempt(A4000, 570.0)]) == claimed
    assert each_once(claimed, []) == claimed  # nobody watched
    futile = Attempt(A40, 300.0)  # it ran, but never claimed the run
    assert each_once(claimed, [Attempt(A40, 160.0), futile, Attempt(A4000, 570.0)]) == [
        claimed[0],
        futile,
        claimed[1],
    ]
    assert each_once([], [futile]) == [futile]


def test_a_machine_that_claims_the_run_before_skypilot_says_that_it_runs_counts_once(
    watcher, provider, run, time, said
):
    def claims():
        epoch = claim_run(run, someone(), take_over=True).epoch
        note_machine(run, epoch, f"pod{time.time}", rented_at=time.time, managed_job="7")

    def runs(recoveries):
        return lambda: provider.now("RUNNING", recoveries=recoveries, recovered_at=time.time)

    def recovers():
        provider.now("RECOVERING")

    provider.now("STARTING")
    during(time, claims, runs(0), recovers, claims, runs(1), recovers, succeed(provider))
    assert watcher.follow() == 0
    assert "bad place" not in "\n".join(said)  # two machines
