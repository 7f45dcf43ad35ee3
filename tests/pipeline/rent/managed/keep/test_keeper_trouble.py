"""What goes wrong on one market, or between the two, does not end a rental with a deadline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import pytest
import yaml

from pion.errors import BadInput, PionError
from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.look import diagnose
from pipeline.rent.managed.look.diagnose import FUTILE_LIVES
from pipeline.rent.managed.provider.jobs import ARRIVE_SECONDS, BOOT_SECONDS, ManagedJob, Place
from pipeline.rent.managed.provider.recorded_task import BY_HOP, MACHINES, NextRental, launch_id_of
from pipeline.rent.managed.watch import Watcher
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.notes.stop_requests import ask_stop, pending_stop
from pipeline.state.notes.watcher_beat import read_beat
from pipeline.state.owner import Author
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from tests.pipeline.rent.conftest import SkyHome
from tests.pipeline.rent.managed.keep.test_keeper_deadline import RESERVE, due_in, sky, watch
from tests.pipeline.rent.managed.look.test_diagnose import A40
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB
from tests.support.states import read, someone
from tests.support.two_markets import ON_DEMAND, SPOT, Enough, TwoMarkets, launched_on_spot

__all__ = ["sky", "watch"]

Watch = Callable[[float], None]


@pytest.fixture
def on_demand(sky: TwoMarkets, run: RunState, watch: Watch) -> ManagedJob:
    """The job of a machine on demand that owns the run. A request for spot stands next to it."""
    due_in(run, RESERVE - 100)
    watch(150)
    due_in(run, RESERVE + 3000)
    watch(20)
    job = sky.job_on(ON_DEMAND)
    assert job is not None
    assert sky.claim is not None
    assert sky.job_on(SPOT) is not None
    return job


def standing(sky: TwoMarkets) -> ManagedJob:
    job = sky.job_on(SPOT)
    assert job is not None
    return job


def boot_spot(sky: TwoMarkets, time: FakeClock) -> ManagedJob:
    """Give the standing request a machine."""
    job = standing(sky)
    place = {"cloud": "RunPod", "region": "CA", "resources": "1x[spot](A40:1)"}
    sky.change(job.id, status="RUNNING", recovered_at=time.time, **place)
    sky.listed = [*(sky.listed or ()), sky.pod(f"pod{job.id}", "RUNNING", job.id)]
    return standing(sky)


def test_a_look_between_two_owners_cancels_neither_machine(
    sky: TwoMarkets,
    run: RunState,
    time: FakeClock,
    said: list[str],
    on_demand: ManagedJob,
    watch: Watch,
) -> None:
    spot = boot_spot(sky, time)
    time.sleep(100)
    assert sky.claim is not None
    ask_stop(run, "pion hop", except_launch=launch_id_of(spot))
    sky.claim.release()
    sky.claim = None
    before = list(sky.cancelled)
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    watcher.look_once()  # nobody owns the run
    assert sky.cancelled == before
    sky.end(on_demand.id, "FAILED", failure="Job exited with exit code 4.")
    watcher.look_once()
    assert sky.cancelled == before
    watch(20)
    assert read(run).claims[0].owner.launch_id == launch_id_of(spot)
    assert [job.id for job in sky.living] == [spot.id]


@pytest.mark.parametrize("asked", [True, False])
def test_a_spot_machine_is_cancelled_for_lack_of_slack_only_until_it_takes_over(
    sky: TwoMarkets,
    run: RunState,
    time: FakeClock,
    said: list[str],
    on_demand: ManagedJob,
    asked: bool,
) -> None:
    spot = boot_spot(sky, time)
    if asked:
        ask_stop(run, "pion hop", except_launch=launch_id_of(spot))
    due_in(run, RESERVE - 500)
    Watcher(run, JOB.name, JOB.id, said.append, sky).look_once()
    assert (spot.id in sky.cancelled) is not asked
    assert on_demand.id not in sky.cancelled


def test_a_run_that_was_handed_to_a_cancelled_machine_gets_another(
    sky: TwoMarkets, run: RunState, time: FakeClock, on_demand: ManagedJob, watch: Watch
) -> None:
    spot = boot_spot(sky, time)
    ask_stop(run, "pion hop", except_launch=launch_id_of(spot))
    assert sky.claim is not None
    sky.claim.release()
    sky.claim = None
    sky.end(spot.id, "CANCELLED")
    sky.end(on_demand.id, "FAILED", failure="Job exited with exit code 4.")
    sky.offered[SPOT] = True
    time.sleep(61)
    watch(100)
    (job,) = sky.living
    assert sky.claim is not None
    assert pending_stop(run, launch_id=launch_id_of(job)) is None


def test_spot_machines_that_never_boot_leave_the_one_on_demand_alone(
    sky: TwoMarkets,
    time: FakeClock,
    said: list[str],
    on_demand: ManagedJob,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot = 200.0
    monkeypatch.setattr(diagnose, "BOOT_SECONDS", boot)

    def stick() -> None:
        """Give each spot request a pod that never becomes reachable."""
        job = sky.job_on(SPOT)
        names = [pod.id for pod in sky.listed or ()]
        if job is not None and f"pod{job.id}" not in names:
            sky.listed = [*(sky.listed or ()), sky.pod(f"pod{job.id}", "RUNNING", job.id)]
        tick()
        assert sky.claim is not None
        sky.claim.heartbeat.report(stage="sft", step=6 + int(time.time / 100) % 2, steps=10)
        sky.claim.heartbeat.beat()

    tick = sky.tick
    sky.tick = stick  # type: ignore[method-assign]
    due_in(sky.run, RESERVE + 12 * boot)
    watch(6 * boot)
    assert on_demand.live
    assert on_demand.id not in sky.cancelled
    assert sky.claim is not None
    spots = [market for market in sky.submitted_to if market is SPOT]
    assert len(spots) == 4, "each stands until it is given up, and then none for an hour"
    assert any("on spot end before they own the run" in line for line in said)


def test_a_controller_that_is_lost_while_its_machine_works_ends_nothing(
    sky: TwoMarkets, run: RunState, said: list[str], on_demand: ManagedJob, watch: Watch
) -> None:
    due_in(run, RESERVE - 500)
    watch(20)  # the request for spot is cancelled
    assert sky.job_on(SPOT) is None
    sky.change(on_demand.id, status="FAILED_CONTROLLER", failure="it died", ended_at=sky.time.time)
    watch(60)
    assert sky.living == [], "the machine on demand still works"
    sky.claim = None  # from now on, it is silent
    sky.listed = []
    watch(600)
    assert [job.status for job in sky.living] == ["RUNNING"]
    assert sky.claim is not None, "another machine has claimed the run"


def test_a_controller_that_is_lost_before_any_machine_came_is_replaced_once(
    sky: TwoMarkets, run: RunState, watch: Watch
) -> None:
    due_in(run, RESERVE + 3000)
    sky.end(JOB.id, "FAILED_CONTROLLER", failure="it died")
    watch(120)
    assert sky.submitted_to == [SPOT]
    assert len(sky.living) == 1


def test_what_can_not_be_requested_costs_nothing_that_stands(
    sky: TwoMarkets,
    run: RunState,
    said: list[str],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_secret(wanted: NextRental) -> None:
        raise BadInput("AWS_ACCESS_KEY_ID must be set in the environment")

    due_in(run, RESERVE - 100)
    monkeypatch.setattr(sky, "task_of", no_secret)
    watch(90)
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    (line,) = [line for line in said if "AWS_ACCESS_KEY_ID" in line]
    assert "tried again each minute" in line
    beat = read_beat(run)
    assert beat is not None
    assert beat.risk_at is not None, "the deadline is at risk from now on"
    monkeypatch.undo()
    watch(90)
    assert sky.submitted_to == [ON_DEMAND]


def test_a_stop_ends_the_watch_of_a_rental_that_was_announced_and_never_submitted(
    sky: TwoMarkets, run: RunState, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(task: object, name: str) -> int:
        raise BadInput("SkyPilot refuses this task")

    due_in(run, RESERVE - 100)
    monkeypatch.setattr(sky, "submit", refuse)
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    watcher.look_once()
    assert sky.cancelled == [JOB.id]
    ask_stop(run, "pion stop")
    assert watcher.follow() in (1, 4)


def of_hop(sky: TwoMarkets, job: ManagedJob, **envs: str) -> ManagedJob:
    """Return the job of a hop, with other variables than `job`."""
    config = yaml.safe_load(job.task or "")
    config["envs"] = {**config["envs"], "PION_LAUNCH_ID": "hop", BY_HOP: "1", **envs}
    at = sky.time.time
    return dataclasses.replace(
        job, id=job.id + 1, status="PENDING", submitted_at=at, task=yaml.safe_dump(config)
    )


def test_a_hop_to_the_other_market_is_left_alone_until_its_time_is_over(
    sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str], on_demand: ManagedJob
) -> None:
    sky.cancel([standing(sky).id])
    sky.jobs.append(of_hop(sky, sky.jobs[-1]))
    hop = sky.jobs[-1]
    due_in(run, RESERVE - 500)  # too little for a request of the watcher's own
    before = list(sky.cancelled)
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    watcher.look_once()
    assert sky.cancelled == before
    (line,) = [line for line in said if "is being moved" in line]
    assert f"sky jobs cancel {hop.id}" in line
    time.sleep(ARRIVE_SECONDS)
    sky.tick()
    watcher.look_once()
    assert hop.id in sky.cancelled, "nobody has seen the hop through"


def test_after_a_hop_to_machines_of_one_market_the_old_machines_are_not_requested(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Watch
) -> None:
    due_in(run, RESERVE - 100)
    sky.jobs.append(of_hop(sky, sky.jobs[0], **{MACHINES: "", "PION_SPOT": "0"}))
    sky.end(JOB.id, "CANCELLED")
    sky.offered[ON_DEMAND] = False
    watch(60)
    assert sky.submitted_to == []
    assert len(sky.living) == 1
    assert any("on demand only" in line for line in said)
    beat = read_beat(run)
    assert beat is not None
    assert beat.saw is None


def test_a_deadline_that_is_switched_off_leaves_the_machine_that_works(
    sky: TwoMarkets, run: RunState, said: list[str], on_demand: ManagedJob, watch: Watch
) -> None:
    spot = standing(sky)
    off = RunDeadline(None, 1800.0, 1.0, Author.me(), "pion deadline")
    change_deadline(run, lambda old: off)
    watch(40)
    assert sky.cancelled[-1] == spot.id
    assert [job.id for job in sky.living] == [on_demand.id]
    assert any(f"cancelled managed job {spot.id}, because the deadline is off" in s for s in said)


def test_a_request_whose_answer_was_lost_is_not_submitted_again_within_a_minute(
    sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str]
) -> None:
    due_in(run, RESERVE - 100)
    submit, asked = sky.submit, []

    def lost(task: object, name: str) -> int:
        asked.append(time.time)
        raise PionError("SkyPilot may have accepted the job")

    sky.submit = lost  # type: ignore[method-assign,assignment]
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    with pytest.raises(PionError):
        watcher.look_once()
    # Another watcher, right after the first was killed, does not know.
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    watcher.look_once()
    assert len(asked) == 1
    time.sleep(61)
    sky.submit = submit  # type: ignore[method-assign]
    watcher.look_once()
    assert sky.submitted_to == [ON_DEMAND]


def test_while_machines_on_demand_are_left_alone_the_request_for_spot_stands(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Watch
) -> None:
    failed = [
        dataclasses.replace(
            of_hop(sky, sky.jobs[0], **{BY_HOP: "", "PION_SPOT": "0", "PION_LAUNCH_ID": name}),
            id=number,
            status="FAILED",
            failure="Job exited with exit code 2.",
            ended_at=sky.time.time,
        )
        for number, name in enumerate("abc", start=1)
    ]
    sky.jobs = [*failed, sky.jobs[0]]
    due_in(run, RESERVE - 100)
    watch(60)
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    assert any("on demand end before they own the run" in line for line in said)


def test_a_spot_machine_that_is_given_up_is_replaced_at_once(
    sky: TwoMarkets, run: RunState, time: FakeClock, watch: Watch
) -> None:
    due_in(run, 4 * BOOT_SECONDS)
    sky.offered[SPOT] = False
    sky.listed = [sky.pod("stuck", "RUNNING", JOB.id)]
    sky.change(JOB.id, status="STARTING")
    watch(BOOT_SECONDS + 40)
    assert sky.cancelled == [JOB.id]
    (job,) = sky.living
    assert (job.submitted_at or 0.0) <= 1_000_000.0 + BOOT_SECONDS + 30
    assert sky.submitted_to == [SPOT]


@pytest.mark.parametrize("market", [SPOT, ON_DEMAND])
def test_machines_that_never_start_the_run_end_it_only_if_they_are_on_demand(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Watch, market: Market
) -> None:
    if market is ON_DEMAND:
        sky.jobs = [of_hop(sky, sky.jobs[0], **{BY_HOP: "", "PION_SPOT": "0"})]
    due_in(run, RESERVE + 3000 if market is SPOT else RESERVE - 100)
    (job,) = sky.jobs
    tick, machines = sky.tick, 0

    def die() -> None:
        """Replace the job's machine, in a new place each time, before it owns the run."""
        nonlocal machines
        now = next(each for each in sky.jobs if each.id == job.id)
        if not now.live:
            tick()
        elif now.status == "RUNNING":
            sky.change(job.id, status="RECOVERING")
        else:
            machines += 1
            place = {"cloud": "RunPod", "region": f"R{machines}", "resources": "1x(A40:1)"}
            sky.change(job.id, status="RUNNING", recoveries=machines, **place)

    sky.tick = die  # type: ignore[method-assign]
    if market is ON_DEMAND:
        watcher = Watcher(run, JOB.name, job.id, said.append, sky)
        sky.time.during_sleep = die
        assert watcher.follow() == 1
        assert sky.submitted_to == []
        return
    watch(200)
    assert sky.cancelled == [job.id]
    assert sky.submitted_to == [], "spot is left alone, and there is time"
    due_in(run, RESERVE - 100)
    watch(150)
    assert sky.submitted_to[0] is ON_DEMAND
    assert sky.claim is not None


def test_machines_that_were_given_up_before_another_owned_the_run_no_longer_count(
    sky: TwoMarkets, run: RunState, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "BOOT_SECONDS", 60.0)
    work, lost = sky.tick, list[int]()

    def tick() -> None:
        """Let two machines hang while they boot, one own the run and be lost, and two more hang."""
        if sky.submitted_to.count(ON_DEMAND) >= (5 if lost else 3):
            work()
            if sky.claim is not None and not lost:
                lost.append(sky.living[0].id)
                sky.preempt(lost[0])
            return
        for job in sky.living:
            if job.status in ("PENDING", "RECOVERING"):
                sky.change(job.id, status="STARTING")
                sky.listed = [sky.pod(f"stuck{job.id}", "RUNNING", job.id)]

    sky.tick = tick  # type: ignore[method-assign]
    due_in(run, RESERVE - 100)
    watch(600)
    assert sky.submitted_to == [ON_DEMAND] * 5
    assert sky.claim is not None


def test_after_a_request_to_stop_no_machine_relieves_a_slow_one(
    sky: TwoMarkets, run: RunState, watch: Watch
) -> None:
    due_in(run, RESERVE + 3000)
    sky.offered[SPOT] = True
    watch(150)
    assert sky.claim is not None
    ask_stop(run, "pion stop")
    due_in(run, 600)
    watch(30)
    assert (sky.cancelled, sky.submitted_to) == ([], [])


def test_a_machine_whose_pod_is_gone_no_longer_owns_the_run(
    sky: TwoMarkets, run: RunState, watch: Watch
) -> None:
    due_in(run, RESERVE + 3000)
    sky.offered[SPOT] = True
    watch(150)
    assert sky.claim is not None
    sky.listed, sky.tick = [], lambda: None  # type: ignore[method-assign]
    due_in(run, RESERVE - 100)
    watch(30)
    assert sky.submitted_to == [ON_DEMAND], "SkyPilot has not noticed the loss yet"


def test_a_place_where_machines_die_is_avoided_though_another_is_requested_only_later(
    sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str], monkeypatch: Any
) -> None:
    due_in(run, RESERVE + 3000)
    outside = claim_run(run, someone())  # so nothing is requested
    machines, avoided = 0, list[Collection[Place]]()

    def die() -> None:
        """Replace the machine in the same place; the process elsewhere ends after the job."""
        nonlocal machines
        (job,) = sky.jobs
        if not job.live:
            outside.release()
        elif job.status == "RUNNING":
            sky.change(job.id, status="RECOVERING")
        else:
            machines += 1
            place = {"cloud": "RunPod", "region": "CA", "resources": "1x[spot](A40:1)"}
            sky.change(job.id, status="RUNNING", recoveries=machines, **place)
        if job.live:
            outside.heartbeat.beat()

    def task_of(wanted: NextRental) -> Any:
        avoided.append(wanted.avoid)
        raise Enough

    time.during_sleep = die
    monkeypatch.setattr(sky, "task_of", task_of)
    with pytest.raises(Enough):
        Watcher(run, JOB.name, JOB.id, said.append, sky).follow()
    assert sky.cancelled == [JOB.id]
    assert avoided == [{A40}]


def test_machines_that_never_start_the_run_end_it_if_none_on_demand_will_do(
    sky: TwoMarkets, sky_home: SkyHome, run: RunState, time: FakeClock, said: list[str]
) -> None:
    spot = read_sky_yaml(sky_home.yaml("any_of: [{accelerators: A40, use_spot: true}]"))
    sky.jobs = [dataclasses.replace(launched_on_spot(spot, time), status="RECOVERING")]
    events = EventLog(run.store, run.name, read(run).epoch)
    for n in range(FUTILE_LIVES):
        about = {"cloud": "RunPod", "region": f"R{n}", "gpu": "A40", "managed_job": str(JOB.id)}
        events.append("machine", id=f"pod{n}", rented_at=time.time - 100 + n, spot=True, **about)
    events.flush()
    due_in(run, RESERVE + 3000)
    assert Watcher(run, JOB.name, JOB.id, said.append, sky).follow() == 1
    assert (sky.cancelled, sky.submitted_to) == ([JOB.id], [])
    assert any(line.endswith("no machine has owned the run") for line in said), said
