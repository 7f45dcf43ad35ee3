"""When the watcher of a run with a deadline must leave everything as it is."""

import dataclasses

from pipeline.state.claim import claim_run
from pipeline.state.stores import StoreError
from tests.pipeline.rent.managed.keep.day import RESERVE
from tests.support.states import someone
from tests.support.two_markets import ON_DEMAND, SPOT


def test_while_the_store_is_down_no_machine_that_may_be_at_work_is_cancelled(day, monkeypatch):
    day.sky.offered[SPOT] = True
    day.due_in(RESERVE + 200)
    watcher = day.watcher()
    for _ in range(12):
        watcher.look_once()
        day.time.sleep(10)
        day.sky.tick()
    assert day.sky.claim is not None

    def down(*_, **__):
        raise StoreError("read", "HEAD.json", "no route to host", outage=True)

    day.time.time += 2000  # far beyond the reserve
    with monkeypatch.context() as patch:
        for method in ("read", "read_versioned", "list", "write", "compare_and_swap"):
            patch.setattr(day.run.store, method, down)
        watcher.look_once()
    assert day.orders == ([], [])
    watcher.look_once()
    assert day.orders == ([], [ON_DEMAND]), "the spot machine works until it is relieved"


def test_while_the_run_is_moved_to_other_machines_nothing_is_requested_or_cancelled(day):
    day.due_in(RESERVE - 100)
    day.sky.jobs.append(dataclasses.replace(day.sky.jobs[0], id=9))  # from `pion hop`
    day.watch(60)
    assert day.orders == ([], [])
    assert day.line("is being moved")


def test_a_run_that_a_process_elsewhere_owns_is_left_alone(day):
    day.due_in(RESERVE - 100)
    day.sky.claim = claim_run(day.run, someone(host="at-home"))
    day.watch(60)
    assert day.orders == ([], [])
    assert day.line("another process owns the run")


def test_without_a_deadline_or_with_one_switched_off_spot_is_waited_for_as_always(day):
    day.watch(30)
    day.change_deadline(None)
    day.watch(30)
    assert day.orders == ([], [])
    assert not day.lines("deadline")


def test_a_rental_that_was_launched_without_a_deadline_says_once_that_it_can_not_keep_one(day):
    sky = day.sky
    sky.jobs = [dataclasses.replace(sky.jobs[0], task="name: x\n---\nenvs: {}\nrun: pion run\n")]
    day.due_in(RESERVE - 100)
    sky.tick = lambda: None
    day.watch(60)
    assert day.orders == ([], [])
    assert f"pion hop {day.run.url} --on SKY" in day.line("can't keep the run's deadline")
