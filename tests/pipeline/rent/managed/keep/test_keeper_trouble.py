"""What goes wrong on one market, or between the two, does not end a rental with a deadline."""

import dataclasses

import pytest

from pion.errors import BadInput, PionError
from pipeline.rent.managed.look import diagnose
from pipeline.rent.managed.provider.jobs import ARRIVE_SECONDS, BOOT_SECONDS
from pipeline.rent.managed.provider.recorded_task import BY_HOP, MACHINES, launch_id_of
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from pipeline.state.notes.stop_requests import ask_stop, pending_stop
from pipeline.state.notes.watcher_beat import read_beat
from tests.pipeline.rent.managed.keep.day import REFUSED, RESERVE, STOPPED
from tests.pipeline.rent.managed.look.test_diagnose import A40
from tests.support.fake_provider import JOB
from tests.support.states import someone
from tests.support.two_markets import ON_DEMAND, SPOT, Enough, launched_on_spot


@pytest.fixture
def on_demand(day):
    """The job of a machine on demand that owns the run. A request for spot stands next to it."""
    day.on_demand_owns()
    day.spot_is_asked_for()
    assert day.sky.claim is not None
    return day.job_on_demand


def boot_spot(day):
    """Give the standing request a machine."""
    job, sky = day.job_on_spot, day.sky
    place = {"cloud": "RunPod", "region": "CA", "resources": "1x[spot](A40:1)"}
    sky.change(job.id, status="RUNNING", recovered_at=day.time.time, **place)
    sky.listed = [*(sky.listed or ()), sky.pod(f"pod{job.id}", "RUNNING", job.id)]
    return day.job_on_spot


def die(day, job, deaths, *, moves):
    """Replace the machine of a job, in a new place each time if it `moves`."""
    if job.status == "RUNNING":
        day.sky.change(job.id, status="RECOVERING")
        return
    deaths.append(job.id)
    spot = {"region": "CA", "resources": "1x[spot](A40:1)"}
    place = {"region": f"R{len(deaths)}", "resources": "1x(A40:1)"} if moves else spot
    day.sky.change(job.id, status="RUNNING", recoveries=len(deaths), cloud="RunPod", **place)


# ---------------------------------------------------------------- between two machines


def test_a_look_between_two_owners_cancels_neither_machine(day, on_demand):
    spot = boot_spot(day)
    day.time.sleep(100)
    day.ask_to_hand_over(launch_id_of(spot))
    day.sky.claim.release()
    day.sky.claim = None
    before = list(day.sky.cancelled)
    watcher = day.watcher()
    watcher.look_once()  # nobody owns the run
    assert day.sky.cancelled == before
    day.sky.end(on_demand.id, "FAILED", failure=STOPPED)
    watcher.look_once()
    assert day.sky.cancelled == before
    day.watch(20)
    assert (day.owner, day.living) == (launch_id_of(spot), [spot.id])


@pytest.mark.parametrize("asked", [True, False])
def test_a_spot_machine_is_cancelled_for_lack_of_slack_only_until_it_takes_over(
    day, on_demand, asked
):
    spot = boot_spot(day)
    if asked:
        day.ask_to_hand_over(launch_id_of(spot))
    day.due_in(RESERVE - 500)
    day.watcher().look_once()
    assert (spot.id in day.sky.cancelled) is not asked
    assert on_demand.id not in day.sky.cancelled


def test_a_run_that_was_handed_to_a_cancelled_machine_gets_another(day, on_demand):
    spot = boot_spot(day)
    day.ask_to_hand_over(launch_id_of(spot))
    day.sky.end(spot.id, "CANCELLED")
    day.owner_leaves(on_demand)
    day.sky.offered[SPOT] = True
    day.time.sleep(61)
    day.watch(100)
    (job,) = day.sky.living
    assert day.sky.claim is not None
    assert pending_stop(day.run, launch_id=launch_id_of(job)) is None


@pytest.mark.slow
def test_spot_machines_that_never_boot_leave_the_one_on_demand_alone(day, on_demand, monkeypatch):
    boot, sky, tick = 200.0, day.sky, day.sky.tick
    monkeypatch.setattr(diagnose, "BOOT_SECONDS", boot)

    def stick():
        """Give each spot request a pod that never becomes reachable."""
        job = sky.job_on(SPOT)
        names = [pod.id for pod in sky.listed or ()]
        if job is not None and f"pod{job.id}" not in names:
            sky.listed = [*(sky.listed or ()), sky.pod(f"pod{job.id}", "RUNNING", job.id)]
        tick()
        sky.claim.heartbeat.report(stage="sft", step=6 + int(day.time.time / 100) % 2, steps=10)
        sky.claim.heartbeat.beat()

    sky.tick = stick
    day.due_in(RESERVE + 12 * boot)
    day.watch(6 * boot)
    assert on_demand.live
    assert on_demand.id not in sky.cancelled
    assert sky.claim is not None
    spots = [market for market in sky.submitted_to if market is SPOT]
    assert len(spots) == 4, "each stands until it is given up, and then none for an hour"
    assert day.lines("on spot end before they own the run")


def test_a_deadline_that_is_switched_off_leaves_the_machine_that_works(day, on_demand):
    spot = day.job_on_spot
    day.change_deadline(None)
    day.watch(40)
    assert (day.sky.cancelled[-1], day.living) == (spot.id, [on_demand.id])
    assert day.lines(f"cancelled managed job {spot.id}, because the deadline is off")


# ---------------------------------------------------------------- controllers and requests


@pytest.mark.slow
def test_a_controller_that_is_lost_while_its_machine_works_ends_nothing(day, on_demand):
    sky = day.sky
    day.due_in(RESERVE - 500)
    day.watch(20)  # the request for spot is cancelled
    assert "a spot machine that is lost would cost" in day.lines("on demand to the end: slack")[-1]
    assert sky.job_on(SPOT) is None
    sky.change(on_demand.id, status="FAILED_CONTROLLER", failure="it died", ended_at=day.time.time)
    day.watch(60)
    assert day.living == [], "the machine on demand still works"
    sky.claim = None  # from now on, it is silent
    sky.listed = []
    day.watch(600)
    assert [job.status for job in sky.living] == ["RUNNING"]
    assert sky.claim is not None, "another machine has claimed the run"


def test_a_controller_that_is_lost_before_any_machine_came_is_replaced_once(day):
    day.due_in(RESERVE + 3000)
    day.sky.end(JOB.id, "FAILED_CONTROLLER", failure="it died")
    day.watch(120)
    assert day.sky.submitted_to == [SPOT]
    assert len(day.living) == 1


def test_what_can_not_be_requested_costs_nothing_that_stands(day, monkeypatch):
    def no_secret(wanted):
        raise BadInput("AWS_ACCESS_KEY_ID must be set in the environment")

    day.due_in(RESERVE - 100)
    with monkeypatch.context() as patch:
        patch.setattr(day.sky, "task_of", no_secret)
        day.watch(90)
    assert day.orders == ([], [])
    assert "tried again each minute" in day.line("AWS_ACCESS_KEY_ID")
    beat = read_beat(day.run)
    assert beat.risk_at is not None, "the deadline is at risk from now on"
    day.watch(90)
    assert day.sky.submitted_to == [ON_DEMAND]


def test_a_stop_ends_the_watch_of_a_rental_that_was_announced_and_never_submitted(day, monkeypatch):
    def refuse(task, name):
        raise BadInput("SkyPilot refuses this task")

    day.due_in(RESERVE - 100)
    monkeypatch.setattr(day.sky, "submit", refuse)
    watcher = day.watcher()
    watcher.look_once()
    assert day.sky.cancelled == [JOB.id]
    ask_stop(day.run, "pion stop")
    assert watcher.follow() in (1, 4)


def test_a_request_whose_answer_was_lost_is_not_submitted_again_within_a_minute(day):
    day.due_in(RESERVE - 100)
    submit, asked = day.sky.submit, []

    def lost(task, name):
        asked.append(day.time.time)
        raise PionError("SkyPilot may have accepted the job")

    day.sky.submit = lost
    with pytest.raises(PionError):
        day.watcher().look_once()
    # Another watcher, right after the first was killed, does not know.
    watcher = day.watcher()
    watcher.look_once()
    assert len(asked) == 1
    day.time.sleep(61)
    day.sky.submit = submit
    watcher.look_once()
    assert day.sky.submitted_to == [ON_DEMAND]


# ---------------------------------------------------------------- hops


def of_hop(day, job, **envs):
    """Return the job of a hop, with other variables than `job`."""
    hop = day.with_variables(job, **{"PION_LAUNCH_ID": "hop", BY_HOP: "1", **envs})
    return dataclasses.replace(hop, status="PENDING", submitted_at=day.time.time)


def test_a_hop_to_the_other_market_is_left_alone_until_its_time_is_over(day, on_demand):
    sky = day.sky
    sky.cancel([day.job_on_spot.id])
    hop = of_hop(day, sky.jobs[-1])
    sky.jobs.append(hop)
    day.due_in(RESERVE - 500)  # too little for a request of the watcher's own
    before = list(sky.cancelled)
    watcher = day.watcher()
    watcher.look_once()
    assert sky.cancelled == before
    assert f"sky jobs cancel {hop.id}" in day.line("is being moved")
    day.time.sleep(ARRIVE_SECONDS)
    sky.tick()
    watcher.look_once()
    assert hop.id in sky.cancelled, "nobody has seen the hop through"


def test_after_a_hop_to_machines_of_one_market_the_old_machines_are_not_requested(day):
    day.due_in(RESERVE - 100)
    day.sky.jobs.append(of_hop(day, day.sky.jobs[0], **{MACHINES: "", "PION_SPOT": "0"}))
    day.sky.end(JOB.id, "CANCELLED")
    day.sky.offered[ON_DEMAND] = False
    day.watch(60)
    assert day.sky.submitted_to == []
    assert len(day.living) == 1
    assert day.lines("on demand only")
    beat = read_beat(day.run)
    assert beat.saw is None


# ---------------------------------------------------------------- machines that start no run


def test_while_machines_on_demand_are_left_alone_the_request_for_spot_stands(day):
    (launch,) = day.sky.jobs
    ended = {"status": "FAILED", "failure": REFUSED, "ended_at": day.time.time}
    failed = [
        dataclasses.replace(
            of_hop(day, launch, **{BY_HOP: "", "PION_SPOT": "0", "PION_LAUNCH_ID": name}),
            id=number,
            **ended,
        )
        for number, name in enumerate("abc", start=1)
    ]
    day.sky.jobs = [*failed, launch]
    day.due_in(RESERVE - 100)
    day.watch(60)
    assert day.orders == ([], [])
    assert day.lines("on demand end before they own the run")


def test_a_spot_machine_that_is_given_up_is_replaced_at_once(day):
    day.due_in(4 * BOOT_SECONDS)
    day.sky.offered[SPOT] = False
    day.sky.listed = [day.sky.pod("stuck", "RUNNING", JOB.id)]
    day.sky.change(JOB.id, status="STARTING")
    day.watch(BOOT_SECONDS + 40)
    assert day.orders == ([JOB.id], [SPOT])
    (job,) = day.sky.living
    assert (job.submitted_at or 0.0) <= 1_000_000.0 + BOOT_SECONDS + 30


def test_machines_on_spot_that_never_start_the_run_do_not_end_it(day):
    (job,), tick, deaths = day.sky.jobs, day.sky.tick, []

    def death():
        now = next(each for each in day.sky.jobs if each.id == job.id)
        die(day, now, deaths, moves=True) if now.live else tick()

    day.sky.tick = death
    day.due_in(RESERVE + 3000)
    day.watch(200)
    assert day.orders == ([job.id], []), "spot is left alone, and there is time"
    day.due_in(RESERVE - 100)
    day.watch(150)
    assert day.sky.submitted_to[0] is ON_DEMAND
    assert day.sky.claim is not None


def test_machines_on_demand_that_never_start_the_run_end_it(day):
    job, deaths = of_hop(day, day.sky.jobs[0], **{BY_HOP: "", "PION_SPOT": "0"}), []
    day.sky.jobs = [job]
    day.due_in(RESERVE - 100)
    day.time.during_sleep = lambda: die(day, day.sky.jobs[-1], deaths, moves=True)
    assert day.watcher().follow() == 1
    assert day.sky.submitted_to == []


def test_machines_that_never_start_the_run_end_it_if_none_on_demand_will_do(day, sky_home):
    spot = read_sky_yaml(sky_home.yaml("any_of: [{accelerators: A40, use_spot: true}]"))
    launched = launched_on_spot(spot, day.time)
    day.sky.jobs = [dataclasses.replace(launched, status="RECOVERING")]
    day.machines_die(spot=True)
    day.due_in(RESERVE + 3000)
    assert day.watcher().follow() == 1
    assert day.orders == ([JOB.id], [])
    assert day.lines("no machine has owned the run")[-1].endswith("no machine has owned the run")


def test_machines_that_were_given_up_before_another_owned_the_run_no_longer_count(day, monkeypatch):
    monkeypatch.setattr(diagnose, "BOOT_SECONDS", 60.0)
    sky, work, lost = day.sky, day.sky.tick, []

    def tick():
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

    sky.tick = tick
    day.due_in(RESERVE - 100)
    day.watch(600)
    assert sky.submitted_to == [ON_DEMAND] * 5
    assert sky.claim is not None


def test_after_a_request_to_stop_no_machine_relieves_a_slow_one(day):
    day.spot_owns(150)
    ask_stop(day.run, "pion stop")
    day.due_in(600)
    day.watch(30)
    assert day.orders == ([], [])


def test_a_machine_whose_pod_is_gone_no_longer_owns_the_run(day):
    day.spot_owns(150)
    day.sky.listed, day.sky.tick = [], lambda: None
    day.due_in(RESERVE - 100)
    day.watch(30)
    assert day.sky.submitted_to == [ON_DEMAND], "SkyPilot has not noticed the loss yet"


def test_a_place_where_machines_die_is_avoided_though_another_is_requested_only_later(
    day, monkeypatch
):
    day.due_in(RESERVE + 3000)
    outside = claim_run(day.run, someone())  # so nothing is requested
    deaths, avoided = [], []

    def death():
        """The process elsewhere ends after the job."""
        (job,) = day.sky.jobs
        if job.live:
            die(day, job, deaths, moves=False)
            outside.heartbeat.beat()
        else:
            outside.release()

    def task_of(wanted):
        avoided.append(wanted.avoid)
        raise Enough

    day.time.during_sleep = death
    monkeypatch.setattr(day.sky, "task_of", task_of)
    with pytest.raises(Enough):
        day.watcher().follow()
    assert (day.sky.cancelled, avoided) == ([JOB.id], [{A40}])
