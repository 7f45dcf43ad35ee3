"""The watcher of a run with a deadline, on a simulated SkyPilot with two markets."""

import json
import re

import pytest

from pipeline.rent.managed.provider.recorded_task import launch_id_of, variable_of
from pipeline.run.handover import FROM_EPOCH
from tests.pipeline.rent.managed.days import days
from tests.support.states import read
from tests.support.two_markets import ON_DEMAND, Enough

# In these days, job 7 is the launch. It waits for spot, and only on demand there are machines.
DAYS = """
spot is waited for until the reserve, and then on demand is rented once
  0    due RESERVE+300
  30   →
  30   says spot may be waited for until
  30   last somebody must watch again by
  30   saw waiting
  480  → cancel 7, request on demand, request spot
  480  owns 8
  480  once the reserve is reached: renting A40 or RTXA6000 on demand, from $0.40/h
  480  wrote deadline: cancelled managed job 7
  480  wrote deadline: requested a machine on demand as managed job 8

while on demand works, spot stands and relieves it, and may be lost again
  0    due RESERVE-100
  150  → cancel 7, request on demand
  150  owns 8
  150  due RESERVE+3000
  170  → request spot
  170  lives 8 9
  170  note 9
  170  offered spot, on demand
  320  →
  320  lives 9
  320  owns 9
  320  says back on spot A40; on demand ended
  320  offered on demand
  320  job 9 status=RECOVERING
  320  pods
  320  release
  320  due RESERVE-100
  390  → cancel 9, request on demand
  390  lives 10
  390  owns 10

spot machines that fail at once are left alone while on demand works
  0    due RESERVE-100
  150  → cancel 7, request on demand
  150  due RESERVE+3000
  170  → request spot
  170  ends 9 FAILED Job exited with exit code 2.
  190  → request spot
  190  ends 10 FAILED Job exited with exit code 2.
  210  → request spot
  210  ends 11 FAILED Job exited with exit code 2.
  250  →
  250  owns 8
  250  says on spot end before they own the run

a first machine that fails ends the rental with its exit code
  0    due RESERVE+3000
  0    ends 7 FAILED Job exited with exit code 2.
  0    follow
  0    → return 2

while a person cancels the rental, nothing else is requested
  0    due RESERVE+3000
  0    job 7 status=CANCELLING
  0    look
  0    → return 0
  0    ends 7 CANCELLED
  0    follow
  0    → return 1
  0    note none

a run that a person stops ends with 4, and gets no other machine
  0    spot-owns
  120  stop
  120  release
  120  ends 7 FAILED Job exited with exit code 4.
  120  follow
  120  → return 4

an owner that ends to hand over to a machine that never comes is replaced
  0    spot-owns
  120  hand-over one that was cancelled
  120  release
  120  ends 7 FAILED Job exited with exit code 4.
  220  → request spot
  220  owns 8

a run that another computer rents for now is left alone
  0    due RESERVE-100
  0    rented host=another-desk rented_from=ffffffff launch_id=theirs
  60   →
  60   once another-desk rents for

while the store is down, no machine that may be at work is cancelled
  0     offered spot, on demand
  0     due RESERVE+200
  120   owns 7
  120   look
  120   passes 2000
  2120  store-down
  2120  look
  2120  → return 1, return 0
  2120  store-up
  2120  look
  2120  → request on demand, return 1

while the run is moved to other machines, nothing is requested or cancelled
  0    due RESERVE-100
  0    job 9
  60   →
  60   once is being moved

a run that a process elsewhere owns is left alone
  0    due RESERVE-100
  0    claim host=at-home
  60   →
  60   once another process owns the run

without a deadline, or with one switched off, spot is waited for as always
  30   due off
  60   →
  60   never deadline

a rental that was launched without a deadline says once that it can not keep one
  0    job 7 task='"run: pion run"'
  0    due RESERVE-100
  0    idle
  60   →
  60   once can't keep the run's deadline
"""


@pytest.mark.parametrize("lines", days(DAYS))
def test_a_deadline_is_kept(day, lines):
    day.play(lines)


def test_the_request_says_from_whom_it_takes_the_run_and_what_its_machines_cost(day):
    epoch = read(day.run).epoch
    day.on_demand_owns()
    job = day.sky.job_on(ON_DEMAND)
    assert variable_of(job, FROM_EPOCH) == str(epoch)
    assert json.loads(variable_of(job, "PION_PRICES") or "") == {"A40": 0.4, "RTXA6000": 0.49}
    assert launch_id_of(job) != "first"


def test_until_when_nobody_must_watch_is_known_without_the_store(day, monkeypatch):
    """After Ctrl-C, a store that hangs must not hold up the command."""

    def leave():
        raise Enough

    def hang(store):
        raise AssertionError("asked the store")

    day.due("RESERVE+4000")
    watcher = day.watcher()
    day.time.during_sleep = leave
    with pytest.raises(Enough):
        watcher.follow()
    before = watcher.keeper.when_to_watch_again()
    assert before == day.said[-1].split(" ", 1)[1]
    day.time.during_sleep = lambda: None
    day.time.sleep(600)
    monkeypatch.setattr(type(day.run.store), "service_time", hang)
    both = (before, watcher.keeper.when_to_watch_again())
    minutes = [int(re.findall(r"in (\d+) min", words)[0]) for words in both]
    assert minutes[0] - minutes[1] == 10
