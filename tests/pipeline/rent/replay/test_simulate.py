"""A run replayed on a trace: what is kept, what is lost by cause, and what decides on saves."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.job import Checkpoint
from pipeline.rent.replay import simulate
from pipeline.rent.replay.simulate import Outcome, replay_on_demand, replay_on_spot, sweep
from pipeline.rent.replay.timed_training import Overheads, StageWork, TimedRun, TimedTraining
from pipeline.rent.replay.traces import Trace
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import SaveCadence
from tests.paths import REPOSITORY
from tests.pipeline.rent.replay.test_traces import SPOT, read_trace
from tests.support.waiting import run_to_end

COSTS = {"boot": 30.0, "restore": 10.0, "stall": 1.0, "write": 3.0}
NOWHERE = Workspace(FileStore("/nowhere"), "run")
TEN = Checkpoint(every_steps=10)
PRETRAIN = StageWork("pretrain", 100, 2.0)


def run(*work: StageWork, policy: Checkpoint = TEN, **costs: float) -> TimedRun:
    return TimedRun(work or (PRETRAIN,), Overheads(**{**COSTS, **costs}), policy, NOWHERE)


def seconds(*spells: int) -> Trace:
    """Make a trace: seconds with a machine, then seconds without one, then with one …"""
    there = [place % 2 == 0 for place, count in enumerate(spells) for _ in range(count)]
    return Trace("invented", 1.0, tuple(there))


def lost(**causes: float) -> dict[str, float]:
    return {**dict.fromkeys(simulate.CAUSES, 0.0), **causes}


def test_on_demand_a_run_pays_for_its_start_its_steps_and_its_saves() -> None:
    outcome = replay_on_demand(run())
    # Nine saves on the way, and the last save, which must also be written.
    assert outcome == Outcome(kept=200.0, lost=lost(boot=30, restore=10, stall=9 + 1 + 3))
    assert outcome.elapsed == outcome.paid == 253


def test_steps_after_the_last_committed_save_are_done_again_on_the_next_machine() -> None:
    outcome = replay_on_spot(run(), seconds(100, 10, 1000), 0)
    # After its start the first machine has 60 s: 10 steps, a save, 10 steps, a save, 9 steps.
    assert outcome.kept == 200
    assert outcome.preemptions == 1
    assert outcome.waiting == 10
    assert outcome.lost == lost(boot=60, restore=20, recompute=18, stall=2 + 7 + 4)


def test_what_is_not_committed_yet_is_lost_with_the_machine() -> None:
    # The first save begins after 60 s of the machine and is committed after 76.
    late = replay_on_spot(run(write=15.0), seconds(75, 10, 1000), 0)
    assert late.lost["recompute"] == 34
    in_time = replay_on_spot(run(write=15.0), seconds(76, 10, 1000), 0)
    assert in_time.lost["recompute"] == 15


def test_a_machine_lost_while_it_starts_costs_its_start() -> None:
    outcome = replay_on_spot(run(), seconds(35, 5, 1000), 0)
    assert outcome.lost["boot"] == 60
    assert outcome.lost["restore"] == 15
    assert outcome.lost["recompute"] == 0


def test_a_step_in_flight_is_lost_too() -> None:
    outcome = replay_on_spot(run(), seconds(40 + 19, 10, 1000), 0)
    assert outcome.lost["recompute"] == 19


def test_a_warning_saves_the_last_finished_step_if_there_is_time() -> None:
    told = replay_on_spot(run(warning=9.0), seconds(100, 10, 1000), 0)
    # The warning comes after 51 s of training: 24 steps are finished, and one is half done.
    assert told.lost["recompute"] == 1
    assert told.kept == 200
    too_late = replay_on_spot(run(warning=3.0), seconds(100, 10, 1000), 0)
    assert too_late.lost["recompute"] == 57 - 2 - 40


def test_a_warning_waits_for_the_upload_under_way() -> None:
    # The warning comes at 25 s: 5 s and 2 steps after a save began, 20 s before the loss at 45 s.
    # That save is committed at 32 or 33 s. The next save waits for it, and takes 12 or 13 s more.
    trace = seconds(40 + 45, 10, 1000)
    assert replay_on_spot(run(write=11.0, warning=20.0), trace, 0).lost["recompute"] == 0
    assert replay_on_spot(run(write=12.0, warning=20.0), trace, 0).lost["recompute"] == 4


def test_after_a_warning_the_machine_is_given_back_when_the_last_step_is_committed() -> None:
    outcome = replay_on_spot(run(warning=9.0), seconds(100, 10, 1000), 0)
    # The warning comes 9 s before the loss. Stall and write take 4 s.
    assert outcome.waiting == 10 + 5
    assert outcome.lost == lost(boot=60, restore=20, recompute=1, stall=2 + 4 + 7 + 4)


def test_a_long_warning_is_used_until_the_save_needs_the_rest() -> None:
    # The warning comes 120 s before the loss. The save needs 4 s, so 18 s before the loss training
    # ends: 142 s after it began, with 6 saves of 1 s and 68 steps.
    outcome = replay_on_spot(run(warning=120.0), seconds(40 + 160, 10, 1000), 0)
    assert outcome.waiting == 10 + 18 - 4
    assert outcome.lost == lost(boot=60, restore=20, recompute=0, stall=6 + 4 + 3 + 4)


def test_a_long_warning_before_a_save_was_measured_ends_training_as_a_run_does() -> None:
    # The first save is committed after 24 s of training, the warning comes after 23 or 24 s.
    early, measured = (
        replay_on_spot(run(warning=120.0), seconds(40 + 120 + after, 10, 1000), 0)
        for after in (23, 24)
    )
    assert early.waiting == 10 + 120 - 4 - 1  # the first save is committed before the last
    # Training ends 18 s before the loss, 1 s after a save began, which is committed 3 s later.
    assert measured.waiting == 10 + 18 - 4 - 3


def test_a_machine_that_is_warned_before_its_first_step_is_given_back_then() -> None:
    outcome = replay_on_spot(run(warning=120.0), seconds(40 + 60, 10, 1000), 0)
    assert outcome.waiting == 10 + 60
    assert outcome.lost == lost(boot=60, restore=20, recompute=0, stall=9 + 4)


@pytest.mark.parametrize("write", [1.0, 17.0])
def test_a_long_warning_keeps_at_least_what_is_kept_without(write: float) -> None:
    work, trace = StageWork("pretrain", 10_000, 2.0), read_trace(SPOT)
    without, warned = (
        sweep(run(work, policy=Checkpoint(), write=write, warning=warning), trace).values()
        for warning in (0.0, 120.0)
    )
    for before, after in zip(without, warned, strict=True):
        assert after.goodput >= before.goodput


def test_a_save_that_finds_the_uploader_busy_is_skipped() -> None:
    costs = Overheads(**{**COSTS, "write": 5.0})
    training = TimedTraining(
        PRETRAIN, costs, Checkpoint(every_steps=1), NOWHERE, 7200.0, first_step=0
    )
    # A save after step 1 is committed at 8 s; steps 2 and 3 end at 5 and 7 s, step 4 at 9 s.
    assert training.seconds_to_finish(3, math.inf) == 8 + 6
    assert training.seconds_to_finish(4, math.inf) == 9 + 6
    assert training.when_lost(14.9, 100) == (1, 2 + 6 + 4.9, 14.9)
    assert training.when_lost(15.0, 100) == (4, 2 + 6 + 5.0, 15.0)


# Exact in binary, so that both sides round in the same way.
halves = st.integers(1, 40).map(lambda n: n / 2)
stalls = st.sampled_from([1 / 64, 1 / 4, 1.0, 10.0])  # the policy takes 0.05 until it has measured


@settings(deadline=None, max_examples=60)
@given(step=halves, stall=stalls, write=halves, hours=st.sampled_from([0.1, 2, 8]), end=st.data())
def test_saves_are_those_that_the_cadence_decides_on_step_by_step(
    step: float, stall: float, write: float, hours: float, end: Any
) -> None:
    """The reference asks a SaveCadence after every step."""
    ends = end.draw(st.lists(st.integers(1, 6000), min_size=1, max_size=3))
    work, costs = StageWork("pretrain", 10**6, step), Overheads(0.0, 0.0, stall, write)
    training = TimedTraining(work, costs, Checkpoint(), NOWHERE, hours * 3600, first_step=0)
    for seconds in ends:
        cadence = SaveCadence(None, None, hours * 3600, last_save=0.0)
        now, done, committed, saved, written = 0.0, 0, 0, 0, -math.inf
        while now + step <= seconds:
            now, done = now + step, done + 1
            if cadence.due(done, now) and now >= written:
                cadence.saved(now, stall, write if saved else 0.0)
                committed, saved = saved, done
                now += stall
                written = now + write
        committed = saved if written <= seconds else committed
        trained = done * step + max(seconds - now, 0.0)
        assert training.when_lost(seconds, 10**6) == (committed, trained, seconds)


def test_a_job_that_fixes_its_saves_gets_those() -> None:
    often, seldom = Checkpoint(every_seconds=20), Checkpoint(every_steps=50)
    trace = seconds(140, 10, 1000)
    assert replay_on_spot(run(policy=seldom), trace, 0).lost["recompute"] == 100
    assert replay_on_spot(run(policy=often), trace, 0).lost["recompute"] < 22


def test_saves_every_so_many_steps_count_from_the_first_step_of_the_stage() -> None:
    # A warning lets the first machine keep 24 steps and lose 1 s, as above. The second machine
    # saves after step 30, is warned 18 s after its first step, keeps step 32 and loses 1 s.
    trace = seconds(100, 10, 40 + 27, 10, 1000)
    assert replay_on_spot(run(warning=9.0), trace, 0).lost["recompute"] == 2


def test_saves_are_no_more_frequent_than_the_store_allows() -> None:
    class Slow(FileStore):
        save_seconds = 90.0

    slow = TimedRun((PRETRAIN,), Overheads(**COSTS), TEN, Workspace(Slow("/nowhere"), "run"))
    assert replay_on_demand(slow).lost["stall"] == 1 + 1 + 3  # one after 100 s, and the last


def test_it_learns_from_the_lives_of_its_processes_how_often_machines_are_lost() -> None:
    # With losses as rare as assumed, saves are half an hour apart, and no machine lasts that long.
    rare = Checkpoint(preemption_hours=1000)
    outcome = replay_on_spot(
        run(StageWork("pretrain", 1000, 2.0), policy=rare), seconds(600, 60), 0
    )
    assert outcome.stopped is None
    assert outcome.preemptions > 3
    assert outcome.lost["recompute"] < 4 * 560


def test_waiting_longer_for_machines_changes_nothing_but_the_wait() -> None:
    rare, work = Checkpoint(preemption_hours=1000), StageWork("pretrain", 1000, 2.0)
    soon, late = (
        replay_on_spot(run(work, policy=rare), seconds(600, wait), 0) for wait in (60, 6000)
    )
    assert late.waiting > soon.waiting
    assert (late.kept, late.lost) == (soon.kept, soon.lost)


def test_a_stage_begins_where_the_one_before_it_was_committed() -> None:
    work = (StageWork("pretrain", 20, 2.0), StageWork("sft", 20, 1.0))
    assert replay_on_demand(run(*work)).kept == 60
    # 46 s of training finish and commit pretrain, 5 s go into sft.
    outcome = replay_on_spot(run(*work), seconds(40 + 46 + 4, 10, 1000), 0)
    assert outcome.kept == 60
    assert outcome.lost["recompute"] == 5


def test_it_gives_up_after_five_attempts_that_committed_nothing_as_a_run_does() -> None:
    outcome = replay_on_spot(run(), seconds(50, 10), 0)
    assert outcome.stopped == "5 attempts in a row committed nothing"
    assert outcome.preemptions == 5
    assert outcome.kept == 0
    some = seconds(50, 10, 50, 10, 50, 10, 50, 10, 90, 10)  # one in five gets further
    assert replay_on_spot(run(), some, 0).stopped is None


def test_it_ends_where_no_machine_ever_lasts_long_enough_to_train() -> None:
    assert replay_on_spot(run(), seconds(20, 10), 0).stopped == "no machine lasts long enough"


@settings(deadline=None, max_examples=60)
@given(
    spells=st.lists(st.integers(1, 300), min_size=2, max_size=8),
    start=st.integers(0, 500),
    stall=st.floats(0, 3),
    write=st.floats(0, 60),
    warning=st.sampled_from([0.0, 5.0, 120.0]),
    policy=st.sampled_from([TEN, Checkpoint(), Checkpoint(every_seconds=15, every_steps=7)]),
)
def test_every_second_paid_for_is_accounted_for(
    spells: list[int], start: int, stall: float, write: float, warning: float, policy: Checkpoint
) -> None:
    trace = seconds(*spells)
    accounted = run(stall=stall, write=write, warning=warning, policy=policy)
    outcome = replay_on_spot(accounted, trace, start)
    assert min(outcome.lost.values()) > -1e-6
    assert outcome.kept == pytest.approx(200) or outcome.stopped
    # The time of the end must be a time at which the trace has a machine.
    if outcome.stopped is None:
        paid = sum(trace.available[t % len(trace.available)] for t in range(start, start + 10**5))
        assert outcome.paid <= paid + 1e-6
        end = start + outcome.elapsed - 1e-3
        assert trace.available[int(end) % len(trace.available)]


def test_a_sweep_replays_every_start() -> None:
    spot, short = read_trace(SPOT), run(StageWork("pretrain", 400, 2.0))
    outcomes = sweep(short, spot)
    assert list(outcomes) == list(range(60))
    for tick, outcome in outcomes.items():
        assert outcome == replay_on_spot(short, spot, 60.0 * tick)


def test_a_sweep_of_a_very_long_run_takes_evenly_spaced_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulate, "MACHINES", 50)
    outcomes = sweep(run(StageWork("pretrain", 400, 2.0)), read_trace(SPOT))
    ticks = list(outcomes)
    assert len(ticks) < 30
    assert {b - a for a, b in itertools.pairwise(ticks)} == {ticks[1]}


def test_no_torch_is_imported() -> None:
    code = "import sys, pipeline.rent.replay.command; sys.exit('torch' in sys.modules)"
    root = REPOSITORY
    assert run_to_end([sys.executable, "-c", code], cwd=root).returncode == 0
