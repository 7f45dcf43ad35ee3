"""What goes wrong on one market, or between the two, does not end a rental with a deadline."""

import dataclasses

import pytest

from pipeline.rent.managed.look import diagnose
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.claim import claim_run
from tests.pipeline.rent.managed.days import days
from tests.pipeline.rent.managed.look.test_diagnose import A40
from tests.support.fake_provider import JOB
from tests.support.states import someone
from tests.support.two_markets import SPOT, Enough, launched_on_spot

# In these days, job 7 is the launch, and waits for spot. Once `spot-stands`, job 8 on demand owns
# the run, and job 9 is the request for spot next to it.
DAYS = """
a look between two owners cancels neither machine
  0    spot-stands
  170  spot-boots
  170  passes 100
  270  hand-over 9
  270  release
  270  look
  270  ends 8 FAILED Job exited with exit code 4.
  270  look
  270  → return 1, return 1
  290  lives 9
  290  owns 9

a spot machine that boots is cancelled for lack of slack
  0    spot-stands
  170  spot-boots
  170  due RESERVE-500
  170  look
  170  → cancel 9, return 1

a spot machine that takes over is not cancelled for lack of slack
  0    spot-stands
  170  spot-boots
  170  hand-over 9
  170  due RESERVE-500
  170  look
  170  → return 1

a run that was handed to a cancelled machine gets another
  0    spot-stands
  170  spot-boots
  170  hand-over 9
  170  ends 9 CANCELLED
  170  release
  170  ends 8 FAILED Job exited with exit code 4.
  170  offered spot, on demand
  170  passes 61
  331  → request spot
  331  owns 10
  331  unstopped 10

a deadline that is switched off leaves the machine that works
  0    spot-stands
  170  due off
  210  → cancel 9
  210  lives 8
  210  says cancelled managed job 9, because the deadline is off

(slow) a controller that is lost while its machine works ends nothing
  0    spot-stands
  170  due RESERVE-500
  190  → cancel 9
  190  says a spot machine that is lost would cost
  190  job 8 status=FAILED_CONTROLLER failure='it died' ended_at=now
  250  →
  250  lives
  250  provider claim=null
  250  pods
  850  → request on demand
  850  owns 10

a controller that is lost before any machine came is replaced once
  0    due RESERVE+3000
  0    ends 7 FAILED_CONTROLLER it died
  120  → request spot
  120  lives 8

what can not be requested costs nothing that stands
  0    due RESERVE-100
  0    refused task AWS_ACCESS_KEY_ID must be set in the environment
  90   →
  90   once tried again each minute: AWS_ACCESS_KEY_ID must be set
  90   saw arming
  90   fails task 0
  180  → cancel 7, request on demand

a stop ends the watch of a rental that was announced and never submitted
  0    due RESERVE-100
  0    refused submit SkyPilot refuses this task
  0    look
  0    → cancel 7, return 0
  0    stop
  0    follow
  0    → return 4

a request whose answer was lost is not submitted again within a minute
  0    due RESERVE-100
  0    fails submit 1
  0    look
  0    killed
  0    look
  0    → cancel 7, fail, return 0
  0    passes 61
  61   look
  61   → request on demand, return 0

a hop to the other market is left alone until its time is over
  0           spot-stands
  170         ends 9 CANCELLED
  170         job 10 PION_LAUNCH_ID=hop PION_BY_HOP=1 status=PENDING submitted_at=now
  170         due RESERVE-500
  170         look
  170         → return 0
  170         once is being moved
  170         says sky jobs cancel 10
  170         passes ARRIVE
  170+ARRIVE  look
  170+ARRIVE  → cancel 10, return 0

after a hop to machines of one market, the old machines are not requested
  0    due RESERVE-100
  0    job 8 PION_LAUNCH_ID=hop PION_BY_HOP=1 PION_MACHINES= PION_SPOT=0
  0    job 8 status=PENDING submitted_at=now
  0    ends 7 CANCELLED
  0    offered none
  60   →
  60   lives 8
  60   says on demand only
  60   saw none

a spot machine that is given up is replaced at once
  0        due BOOT+BOOT+BOOT+BOOT
  0        offered on demand
  0        pods stuck
  0        job 7 status=STARTING
  BOOT+30  → terminate stuck, cancel 7, request spot

after a request to stop, no machine relieves a slow one
  0    spot-owns
  120  stop
  120  due 600
  150  →

a machine whose pod is gone no longer owns the run, though SkyPilot has not noticed the loss
  0    spot-owns
  120  pods
  120  idle
  120  due RESERVE-100
  150  → cancel 7, request on demand
"""


@pytest.mark.parametrize("lines", days(DAYS))
def test_trouble_ends_no_rental(day, lines):
    day.play(lines)


def die(day, job, deaths, *, moves):
    """Replace the machine of a job, in a new place each time if it `moves`."""
    if job.status == "RUNNING":
        day.sky.change(job.id, status="RECOVERING")
        return
    deaths.append(job.id)
    spot = {"region": "CA", "resources": "1x[spot](A40:1)"}
    place = {"region": f"R{len(deaths)}", "resources": "1x(A40:1)"} if moves else spot
    day.sky.change(job.id, status="RUNNING", recoveries=len(deaths), cloud="RunPod", **place)


@pytest.mark.slow
def test_spot_machines_that_never_boot_leave_the_one_on_demand_alone(day, monkeypatch):
    day.spot_stands()
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
    day.due("RESERVE+2400")
    day.watch_until(170 + 6 * boot)
    day.owns("8")
    ended = "terminate pod{0}, cancel {0}"
    replaced = ", request spot, ".join(ended.format(job) for job in (9, 10, 11, 12))
    assert day.new_orders() == replaced.split(", "), "none is requested for an hour then"
    day.says("on spot end before they own the run")


def test_while_machines_on_demand_are_left_alone_the_request_for_spot_stands(day):
    ended = {
        "status": "FAILED",
        "failure": "Job exited with exit code 2.",
        "ended_at": day.time.time,
    }
    for number, name in enumerate("abc", start=1):
        day.job(f"{number} PION_SPOT=0 PION_LAUNCH_ID={name}")
        day.sky.change(number, **ended)
    day.play("""
        0   due RESERVE-100
        60  →
        60  says on demand end before they own the run
    """)


def test_machines_on_spot_that_never_start_the_run_do_not_end_it(day):
    tick, deaths = day.sky.tick, []

    def death():
        launch = day.find(JOB.id)
        die(day, launch, deaths, moves=True) if launch.live else tick()

    day.sky.tick = death
    day.play("""
        0    due RESERVE+3000
        200  → cancel 7
        200  due RESERVE-100
        350  → request on demand
        350  owns 8
    """)


def test_machines_on_demand_that_never_start_the_run_end_it(day):
    day.job("7 PION_SPOT=0")
    deaths = []
    day.due("RESERVE-100")
    day.time.during_sleep = lambda: die(day, day.sky.jobs[-1], deaths, moves=True)
    assert day.watcher().follow() == 1
    assert not [order for order in day.sky.orders if "request" in order]


def test_machines_that_never_start_the_run_end_it_if_none_on_demand_will_do(day, sky_home):
    spot = read_sky_yaml(sky_home.yaml("any_of: [{accelerators: A40, use_spot: true}]"))
    launched = launched_on_spot(spot, day.time)
    day.sky.jobs = [dataclasses.replace(launched, status="RECOVERING")]
    day.machines_die("spot")
    day.play("""
        0  due RESERVE+3000
        0  follow
        0  → cancel 7, return 1
    """)
    line = next(line for line in reversed(day.said) if "no machine has owned the run" in line)
    assert line.endswith("no machine has owned the run")


def test_machines_that_were_given_up_before_another_owned_the_run_no_longer_count(day, monkeypatch):
    monkeypatch.setattr(diagnose, "BOOT_SECONDS", 60.0)
    sky, work, lost = day.sky, day.sky.tick, []

    def requests():
        return sky.orders.count("request on demand")

    def tick():
        """Let two machines hang while they boot, one own the run and be lost, and two more hang."""
        if requests() >= (5 if lost else 3):
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
    day.due("RESERVE-100")
    day.watch_until(600)
    assert requests() == 5
    assert "request spot" not in sky.orders
    assert sky.claim is not None


def test_a_place_where_machines_die_is_avoided_though_another_is_requested_only_later(
    day, monkeypatch
):
    day.due("RESERVE+3000")
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
    assert (day.sky.orders, avoided) == (["cancel 7"], [{A40}])
