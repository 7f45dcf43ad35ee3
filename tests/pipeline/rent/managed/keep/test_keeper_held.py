"""When the watcher of a run with a deadline must leave everything as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.owner import Author
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError
from tests.pipeline.rent.managed.keep.test_keeper_deadline import RESERVE, due_in, sky, watch
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB
from tests.support.states import someone
from tests.support.two_markets import ON_DEMAND, SPOT, TwoMarkets

__all__ = ["sky", "watch"]


def test_while_the_store_is_down_no_machine_that_may_be_at_work_is_cancelled(
    sky: TwoMarkets,
    run: RunState,
    time: FakeClock,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sky.offered[SPOT] = True
    due_in(run, RESERVE + 200)
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    for _ in range(12):
        watcher.look_once()
        time.sleep(10)
        sky.tick()
    assert sky.claim is not None

    def down(*_: Any, **__: Any) -> Any:
        raise StoreError("read", "HEAD.json", "no route to host", outage=True)

    for method in ("read", "read_versioned", "list", "write", "compare_and_swap"):
        monkeypatch.setattr(run.store, method, down)
    time.time += 2000  # far beyond the reserve
    watcher.look_once()
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    monkeypatch.undo()
    watcher.look_once()
    assert sky.submitted_to == [ON_DEMAND]
    assert sky.cancelled == [], "the spot machine works until it is relieved"


def test_while_the_run_is_moved_to_other_machines_nothing_is_requested_or_cancelled(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE - 100)
    sky.jobs.append(dataclasses.replace(sky.jobs[0], id=9))  # from `pion hop`
    watch(60)
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    assert len([line for line in said if "is being moved" in line]) == 1


def test_a_run_that_a_process_elsewhere_owns_is_left_alone(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE - 100)
    sky.claim = claim_run(run, someone(host="at-home"))
    watch(60)
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    assert len([line for line in said if "another process owns the run" in line]) == 1


def test_without_a_deadline_or_with_one_switched_off_spot_is_waited_for_as_always(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    watch(30)
    off = RunDeadline(None, 1800.0, 1.0, Author.me(), "pion deadline")
    change_deadline(run, lambda old: off)
    watch(30)
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    assert not any("deadline" in line for line in said)


def test_a_rental_that_was_launched_without_a_deadline_says_once_that_it_can_not_keep_one(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    sky.jobs = [dataclasses.replace(sky.jobs[0], task="name: x\n---\nenvs: {}\nrun: pion run\n")]
    due_in(run, RESERVE - 100)
    sky.tick = lambda: None  # type: ignore[method-assign]
    watch(60)
    assert (sky.cancelled, sky.submitted_to) == ([], [])
    (line,) = [line for line in said if "can't keep the run's deadline" in line]
    assert f"pion hop {run.url} --on SKY" in line
