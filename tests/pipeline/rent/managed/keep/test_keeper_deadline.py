"""The watcher of a run with a deadline, on a simulated SkyPilot with two markets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from pipeline.rent.managed.provider.recorded_task import launch_id_of, variable_of
from pipeline.rent.managed.watch import Watcher
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.notes.watcher_beat import read_beat
from pipeline.state.owner import Author
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store
from tests.pipeline.rent.conftest import SkyHome
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB, ME
from tests.support.states import read
from tests.support.two_markets import (
    ON_DEMAND,
    SPOT,
    Enough,
    TwoMarkets,
    launched_on_spot,
)

MIXED = """ordered:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA5000, use_spot: true}
  - {accelerators: RTXA6000, use_spot: false}
  - {accelerators: A40, use_spot: false}
  - {accelerators: L40S, use_spot: true}"""
# About what is kept in reserve: a boot, a save, a loss, the margin, and nearly no work.
RESERVE = 2300.0


@pytest.fixture
def sky(sky_home: SkyHome, run: RunState, time: FakeClock) -> TwoMarkets:
    """A rental that waits for spot, and a note that says who rents."""
    machines = read_sky_yaml(sky_home.yaml(MIXED))
    note = RentalNote(time.time, "desk", ME, "first", read(run).epoch)
    write_rental_note(run, note, None)
    return TwoMarkets(run, time, launched_on_spot(machines, time))


@pytest.fixture
def watch(
    sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str]
) -> Callable[[float], None]:
    """Return a function that starts a watcher, for so many seconds."""

    def watch_for(seconds: float) -> None:
        end = time.time + seconds

        def during_sleep() -> None:
            sky.tick()
            if time.time >= end:
                raise Enough

        time.during_sleep = during_sleep
        with pytest.raises(Enough):
            Watcher(run, JOB.name, JOB.id, said.append, sky).follow()
        time.during_sleep = lambda: None

    return watch_for


def due_in(run: RunState, seconds: float) -> None:
    """Set the deadline so many seconds from now."""
    now = run.clock.now()
    change_deadline(
        run, lambda old: RunDeadline(now + seconds, 1800.0, now, Author.me(), "pion deadline")
    )


def test_spot_is_waited_for_until_the_reserve_and_then_on_demand_is_rented_once(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE + 300)
    watch(30)
    assert any("spot may be waited for until" in line for line in said)
    assert "somebody must watch again by" in said[-1]
    beat = read_beat(run)
    assert beat is not None
    assert beat.saw is not None
    assert beat.saw["state"] == "waiting"
    assert beat.risk_at is not None
    assert sky.submitted_to == []
    epoch = read(run).epoch
    watch(450)
    text = "\n".join(said)
    assert "and the reserve is reached: renting A40 or RTXA6000 on demand, from $0.40/h" in text
    assert sky.cancelled[0] == JOB.id
    assert sky.submitted_to[0] is ON_DEMAND
    job = sky.job_on(ON_DEMAND)
    assert job is not None
    assert variable_of(job, FROM_EPOCH) == str(epoch)
    assert json.loads(variable_of(job, "PION_PRICES") or "") == {"A40": 0.4, "RTXA6000": 0.49}
    assert launch_id_of(job) == read(run).claims[0].owner.launch_id != "first"
    done = [e["done"] for e in read_events(run.store, run.name) if e["event"] == "watch"]
    assert done[:2] == [
        [f"cancelled managed job {JOB.id}"],
        [f"requested a machine on demand as managed job {job.id}"],
    ]
    assert text.count("the reserve is reached") == 1


def test_until_when_nobody_must_watch_is_known_without_the_store(
    sky: TwoMarkets,
    run: RunState,
    time: FakeClock,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After Ctrl-C, a store that hangs must not hold up the command."""

    def leave() -> None:
        raise Enough

    def hang(store: Store) -> None:
        raise AssertionError("asked the store")

    due_in(run, RESERVE + 4000)
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    time.during_sleep = leave
    with pytest.raises(Enough):
        watcher.follow()
    before = watcher.keeper.when_to_watch_again()
    assert before == said[-1].split(" ", 1)[1]
    time.during_sleep = lambda: None
    time.sleep(600)
    monkeypatch.setattr(type(run.store), "service_time", hang)
    minutes = [
        int(re.findall(r"in (\d+) min", words)[0])
        for words in (before, watcher.keeper.when_to_watch_again())
    ]
    assert minutes[0] - minutes[1] == 10


def test_while_on_demand_works_spot_stands_and_relieves_it_and_may_be_lost_again(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE - 100)
    watch(150)
    assert sky.claim is not None, "on demand works"
    due_in(run, RESERVE + 3000)  # `pion deadline RUN --hours N`
    watch(20)
    standing = sky.job_on(SPOT)
    assert standing is not None
    assert sky.submitted_to == [ON_DEMAND, SPOT]
    on_demand = sky.job_on(ON_DEMAND)
    assert on_demand is not None
    note, _ = read_rental_note(run)
    assert note is not None
    assert note.launch_id == launch_id_of(standing)
    sky.offered[SPOT] = True
    watch(150)
    assert [job.id for job in sky.living] == [standing.id]
    assert read(run).claims[0].owner.launch_id == launch_id_of(standing)
    assert any("back on spot A40; on demand ended" in line for line in said)
    sky.offered[SPOT] = False
    sky.preempt(standing.id)
    due_in(run, RESERVE - 100)
    watch(150)
    assert sky.submitted_to[:3] == [ON_DEMAND, SPOT, ON_DEMAND]
    assert sky.living[0].id == standing.id + 1
    assert read(run).claims[0].owner.launch_id == launch_id_of(sky.living[0])


def test_a_standing_request_ends_when_slack_is_too_small_for_a_loss(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE - 100)
    watch(150)
    due_in(run, RESERVE + 3000)
    watch(20)
    assert sky.job_on(SPOT) is not None
    due_in(run, RESERVE - 500)
    watch(20)
    assert sky.job_on(SPOT) is None
    assert sky.job_on(ON_DEMAND) is not None
    assert any("on demand to the end: slack" in line for line in said)


def test_spot_machines_that_fail_at_once_are_left_alone_while_on_demand_works(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE - 100)
    watch(150)
    due_in(run, RESERVE + 3000)
    for _ in range(5):
        watch(20)
        if (standing := sky.job_on(SPOT)) is not None:
            sky.end(standing.id, "FAILED", failure="Job exited with exit code 2.")
    assert sky.submitted_to == [ON_DEMAND, SPOT, SPOT, SPOT]
    assert sky.job_on(ON_DEMAND) is not None
    assert len([line for line in said if "on spot end before they own the run" in line]) >= 1


def test_a_first_machine_that_fails_ends_the_rental_with_its_exit_code(
    sky: TwoMarkets, run: RunState, said: list[str]
) -> None:
    due_in(run, RESERVE + 3000)
    sky.end(JOB.id, "FAILED", failure="Job exited with exit code 2.")
    assert Watcher(run, JOB.name, JOB.id, said.append, sky).follow() == 2
    assert sky.submitted_to == []


def test_a_rental_that_a_person_cancels_is_over(
    sky: TwoMarkets, run: RunState, time: FakeClock, said: list[str]
) -> None:
    due_in(run, RESERVE + 3000)
    sky.end(JOB.id, "CANCELLED")
    assert Watcher(run, JOB.name, JOB.id, said.append, sky).follow() == 1
    assert (sky.submitted_to, read_rental_note(run)[0]) == ([], None)


def test_while_a_person_cancels_the_rental_nothing_else_is_requested(
    sky: TwoMarkets, run: RunState, said: list[str]
) -> None:
    due_in(run, RESERVE + 3000)
    sky.change(JOB.id, status="CANCELLING")  # until its machine has ended
    watcher = Watcher(run, JOB.name, JOB.id, said.append, sky)
    watcher.look_once()
    assert sky.submitted_to == []
    sky.end(JOB.id, "CANCELLED")
    assert watcher.follow() == 1
    assert sky.submitted_to == []


def test_a_run_that_a_person_stops_ends_with_4_and_gets_no_other_machine(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    sky.offered[SPOT] = True
    due_in(run, RESERVE + 3000)
    watch(120)
    assert sky.claim is not None
    ask_stop(run, "pion stop")
    sky.claim.release()
    sky.end(JOB.id, "FAILED", failure="Job exited with exit code 4.")
    assert Watcher(run, JOB.name, JOB.id, said.append, sky).follow() == 4
    assert sky.submitted_to == []


def test_an_owner_that_ends_to_hand_over_to_a_machine_that_never_comes_is_replaced(
    sky: TwoMarkets, run: RunState, watch: Callable[[float], None]
) -> None:
    sky.offered[SPOT] = True
    due_in(run, RESERVE + 3000)
    watch(120)
    assert sky.claim is not None
    ask_stop(run, "pion hop to pod-9", except_launch="one that was cancelled")
    sky.claim.release()
    sky.claim = None
    sky.end(JOB.id, "FAILED", failure="Job exited with exit code 4.")
    watch(100)
    assert sky.submitted_to == [SPOT]
    assert sky.claim is not None


def test_another_computer_that_rents_now_is_left_alone(
    sky: TwoMarkets, run: RunState, said: list[str], watch: Callable[[float], None]
) -> None:
    due_in(run, RESERVE - 100)
    other = RentalNote(1.0, "another-desk", "99999999", "theirs", read(run).epoch)
    write_rental_note(run, other, read_rental_note(run)[1])
    watch(60)
    assert (sky.submitted_to, sky.cancelled) == ([], [])
    assert len([line for line in said if "another-desk rents for" in line]) == 1
