"""The watcher of a run with a deadline, on a simulated SkyPilot with two markets."""

import json
import re

import pytest

from pipeline.rent.managed.provider.recorded_task import launch_id_of, variable_of
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.notes.watcher_beat import read_beat
from pipeline.state.rows.metrics import read_events
from tests.pipeline.rent.managed.keep.day import REFUSED, RESERVE
from tests.support.fake_provider import JOB
from tests.support.states import read
from tests.support.two_markets import ON_DEMAND, SPOT, Enough


def test_spot_is_waited_for_until_the_reserve_and_then_on_demand_is_rented_once(day):
    day.due_in(RESERVE + 300)
    day.watch(30)
    assert day.lines("spot may be waited for until")
    assert "somebody must watch again by" in day.said[-1]
    beat = read_beat(day.run)
    assert beat.saw["state"] == "waiting"
    assert beat.risk_at is not None
    assert day.sky.submitted_to == []
    epoch = read(day.run).epoch
    day.watch(450)
    words = "and the reserve is reached: renting A40 or RTXA6000 on demand, from $0.40/h"
    assert words in day.line("the reserve is reached")
    assert (day.sky.cancelled[0], day.sky.submitted_to[0]) == (JOB.id, ON_DEMAND)
    job = day.job_on_demand
    assert variable_of(job, FROM_EPOCH) == str(epoch)
    assert json.loads(variable_of(job, "PION_PRICES") or "") == {"A40": 0.4, "RTXA6000": 0.49}
    assert launch_id_of(job) == day.owner != "first"
    events = read_events(day.run.store, day.run.name)
    assert [event["done"] for event in events if event["event"] == "watch"][:2] == [
        [f"cancelled managed job {JOB.id}"],
        [f"requested a machine on demand as managed job {job.id}"],
    ]


def test_until_when_nobody_must_watch_is_known_without_the_store(day, monkeypatch):
    """After Ctrl-C, a store that hangs must not hold up the command."""

    def leave():
        raise Enough

    def hang(store):
        raise AssertionError("asked the store")

    day.due_in(RESERVE + 4000)
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


def test_while_on_demand_works_spot_stands_and_relieves_it_and_may_be_lost_again(day):
    day.on_demand_owns()
    standing = day.spot_is_asked_for()  # `pion deadline RUN --hours N`
    assert day.sky.submitted_to == [ON_DEMAND, SPOT]
    assert day.job_on_demand
    note, _ = read_rental_note(day.run)
    assert note.launch_id == launch_id_of(standing)
    day.sky.offered[SPOT] = True
    day.watch(150)
    assert (day.living, day.owner) == ([standing.id], launch_id_of(standing))
    assert day.lines("back on spot A40; on demand ended")
    day.sky.offered[SPOT] = False
    day.sky.preempt(standing.id)
    day.due_in(RESERVE - 100)
    day.watch(150)
    assert day.sky.submitted_to[:3] == [ON_DEMAND, SPOT, ON_DEMAND]
    assert day.living[0] == standing.id + 1
    assert day.owner == launch_id_of(day.sky.living[0])


def test_spot_machines_that_fail_at_once_are_left_alone_while_on_demand_works(day):
    day.on_demand_owns()
    day.due_in(RESERVE + 3000)
    for _ in range(5):
        day.watch(20)
        if (standing := day.sky.job_on(SPOT)) is not None:
            day.sky.end(standing.id, "FAILED", failure=REFUSED)
    assert day.sky.submitted_to == [ON_DEMAND, SPOT, SPOT, SPOT]
    assert day.job_on_demand
    assert day.lines("on spot end before they own the run")


def test_a_first_machine_that_fails_ends_the_rental_with_its_exit_code(day):
    day.due_in(RESERVE + 3000)
    day.sky.end(JOB.id, "FAILED", failure=REFUSED)
    assert day.watcher().follow() == 2
    assert day.sky.submitted_to == []


def test_while_a_person_cancels_the_rental_nothing_else_is_requested(day):
    day.due_in(RESERVE + 3000)
    day.sky.change(JOB.id, status="CANCELLING")  # until its machine has ended
    watcher = day.watcher()
    watcher.look_once()
    assert day.sky.submitted_to == []
    day.sky.end(JOB.id, "CANCELLED")
    assert watcher.follow() == 1
    assert (day.sky.submitted_to, read_rental_note(day.run)[0]) == ([], None)


def test_a_run_that_a_person_stops_ends_with_4_and_gets_no_other_machine(day):
    day.spot_owns(120)
    ask_stop(day.run, "pion stop")
    day.owner_leaves()
    assert day.watcher().follow() == 4
    assert day.sky.submitted_to == []


def test_an_owner_that_ends_to_hand_over_to_a_machine_that_never_comes_is_replaced(day):
    day.spot_owns(120)
    day.ask_to_hand_over("one that was cancelled")
    day.owner_leaves()
    day.watch(100)
    assert day.sky.submitted_to == [SPOT]
    assert day.sky.claim is not None


def test_another_computer_that_rents_now_is_left_alone(day):
    day.due_in(RESERVE - 100)
    other = RentalNote(1.0, "another-desk", "99999999", "theirs", read(day.run).epoch)
    write_rental_note(day.run, other, read_rental_note(day.run)[1])
    day.watch(60)
    assert day.orders == ([], [])
    assert day.line("another-desk rents for")
