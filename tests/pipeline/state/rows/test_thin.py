"""Thinned rows say what all rows say: the same steps, the same seconds, the same peaks."""

import json
import math
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cost.costs import CAUSES, costs
from pipeline.state.head import Head
from pipeline.state.owner import Owner
from pipeline.state.rows.join_segments import Joiner
from pipeline.state.rows.metrics import MetricsLog
from pipeline.state.rows.row_types import Unreadable
from pipeline.state.rows.thin import (
    RANGES,
    TAIL,
    ThinReader,
    kept_steps,
    row_seconds,
    step_count,
    thinned,
)
from pipeline.state.stores import FileStore

FOLDER = "run/metrics/pretrain/"
T = 1_000_000.0


def step(number, at, loss=1.0, epoch=1):
    rows = [4 * number, 4 * number + 4]
    return {"step": number, "epoch": epoch, "at": at, "loss": loss, "rows": rows} | {
        "tokens_per_second": 40.0
    }


def steps(numbers, at=T, epoch=1):
    """Return rows of steps of a second, each of 4 rows of 10 tokens."""
    randomness = random.Random(epoch)
    return [step(n, at + n - numbers[0], randomness.random(), epoch) for n in numbers]


def held_out(number, at, epoch=1):
    return {"step": number, "epoch": epoch, "at": at, "held_out_loss": 2.0}


def test_few_rows_stay_and_stand_for_all():
    rows = steps(range(10_000))
    few = thinned(rows)
    assert len(few) <= 2 * RANGES + TAIL + 1
    assert few[0] == rows[0]
    assert few[-TAIL + 1 :] == rows[-TAIL + 1 :]
    assert few[-1]["step"] == 9999
    assert sum(map(step_count, few)) == 10_000
    assert sum(map(row_seconds, few)) == pytest.approx(sum(map(row_seconds, rows)))
    kept = {row["step"]: row["loss"] for row in few}
    assert all(rows[number]["loss"] == loss for number, loss in kept.items())
    for start in range(0, 10_000, 100):
        losses = [row["loss"] for row in rows[start : start + 100]]
        assert {min(losses), max(losses)} <= {*kept.values()}


def test_the_peak_of_the_gradients_stays():
    rows = [row | {"grad_norm": 0.5} for row in steps(range(10_000))]
    rows[4321]["grad_norm"] = 90.0
    few = thinned(rows)
    assert len(few) <= 3 * RANGES + TAIL + 1
    assert max(row["grad_norm"] for row in few) == 90.0


def test_a_part_of_what_a_row_stands_for_may_be_repeated_later():
    few = thinned(steps(range(10_000)))
    for last in (0, 17, 5000, 9999, 20_000):
        assert sum(kept_steps(row, last) for row in few) == min(last, 9999) + 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["step", "held out", "no loss"]),
            st.sampled_from([0.0, 0.001, 1.0, 50.0, -3.0]),
            st.floats(-5, 5),
        ),
        max_size=60,
    ),
    st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_rows_that_are_thinned_twice_stand_for_the_same(kinds, cut):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.state.rows.thin.RANGES", 3)
        patch.setattr("pipeline.state.rows.thin.TAIL", 2)
        at, rows = T, []
        for number, (kind, pause, loss) in enumerate(kinds):
            at += pause
            row = held_out(number, at) if kind == "held out" else step(number, at, loss)
            rows.append(row | {"loss": None} if kind == "no loss" else row)
        few = thinned([*thinned(rows[:cut]), *thinned(rows[cut:])])
    assert sum(map(step_count, few)) == sum(map(step_count, rows))
    total = sum(row_seconds(row) for row in few if step_count(row))
    assert total == pytest.approx(sum(row_seconds(row) for row in rows if step_count(row)))
    assert [r for r in few if "loss" not in r] == [r for r in rows if "loss" not in r]
    known = [row["loss"] for row in rows if row.get("loss") is not None]
    if known:
        found = [row["loss"] for row in few if row.get("loss") is not None]
        assert (min(found), max(found)) == (min(known), max(known))


def test_a_row_without_a_speed_takes_all_the_time_there_is():
    rows = steps(range(1000))
    del rows[500]["tokens_per_second"]
    few = thinned(rows)
    assert [row["step"] >= 500 for row in few if math.isinf(row_seconds(row))] == [True]


# ---------------------------------------------------------------- costs


def history():
    """A run of 20,000 steps on two machines. The second resumes 700 steps before the first ended.

    There is an evaluation every 1,000 steps, of 20 s, and a save every 500, of 3 s.
    """
    events = []
    rows = []
    at = T
    for epoch, numbers in ((1, range(1, 10_001)), (2, range(9_301, 20_001))):
        about = {"id": f"pod{epoch}", "gpu": "A40", "count": 1, "price": 0.4, "rented_at": at}
        events.append({"event": "machine", "epoch": epoch, "at": at + 60, "phases": {}, **about})
        at += 100
        events.append({"event": "training", "epoch": epoch, "at": at, "stage": "pretrain"})
        events[-1]["seq_len"] = 10
        at += 30  # the first step compiles
        for number in numbers:
            at += 1 + 3 * (number % 500 == 0)
            rows.append(step(number, at, 1 / number, epoch))
            if number % 1000 == 0:
                at += 20
                rows.append(held_out(number, at, epoch))
        at += 200
    head = Head(epoch=2, owner=Owner.me(), restores={1: {"pretrain": 0}, 2: {"pretrain": 9_300}})
    return events, rows, head


def cost(events, rows, head):
    return costs(events, {"pretrain": rows}, head, rows[-1]["at"])


def test_a_run_costs_the_same_by_its_thinned_rows():
    events, rows, head = history()
    few = []
    for epoch in (1, 2):
        mine = [row for row in rows if row["epoch"] == epoch]
        for start in range(0, len(mine), 9000):
            few += thinned(mine[start : start + 9000])
    assert len(few) < len(rows) / 15
    full, thin = cost(events, rows, head), cost(events, few, head)
    assert full.seconds["recompute"] >= 700
    for cause in CAUSES:
        assert thin.seconds[cause] == pytest.approx(full.seconds[cause], rel=0.01, abs=1), cause
    assert thin.dollars == pytest.approx(full.dollars)
    assert thin.machines[0].to_first_step == full.machines[0].to_first_step


# ---------------------------------------------------------------- files


@pytest.fixture
def store(tmp_path):
    """A log of 100 segments of 20 steps, joined, and three later segments."""
    store = FileStore(tmp_path / "runs")
    log = MetricsLog(store, "run", "pretrain", 1, lambda: T)
    rows = iter(steps(range(2060)))

    def flush(count):
        for _ in range(count):
            log.adopt("".join(json.dumps(next(rows)) + "\n" for _ in range(20)))
            log.flush()

    flush(100)
    joiner = Joiner(store, FOLDER, 1, lambda: None)
    while joiner.step():
        pass
    flush(3)
    return store


def test_a_reader_takes_thinned_rows_where_there_are_any(store):
    unreadable = Unreadable()
    reader = ThinReader(store, FOLDER, unreadable)
    rows = reader.read()
    assert len(rows) < 400
    assert sum(map(step_count, rows)) == 2060
    assert reader.read() == rows
    assert unreadable.count == 0


# ---------------------------------------------------------------- many attempts

ATTEMPTS, STEPS = 6, 300


def moved_often(folder):
    """Return the log, events, rows and HEAD of a run on many machines. Each but the last has its
    rows in one joined object, and trained ten steps that the next one repeated."""
    store, events, rows = FileStore(folder / "moved"), [], []
    restores, at = {}, T
    for epoch in range(1, ATTEMPTS + 1):
        first = (epoch - 1) * (STEPS - 10)
        restores[epoch] = {"pretrain": first}
        about = {"id": f"pod{epoch}", "gpu": "A40", "count": 1, "price": 0.4, "rented_at": at}
        events.append({"event": "machine", "epoch": epoch, "at": at + 60, "phases": {}, **about})
        events.append({"event": "training", "epoch": epoch, "at": at + 90, "stage": "pretrain"})
        events[-1]["seq_len"] = 10
        mine = steps(range(first + 1, first + STEPS + 1), at + 130, epoch)
        mine.insert(200, held_out(first + 200, at + 329.5, epoch))
        for number, start in enumerate(range(0, len(mine), 50)):
            lines = "".join(json.dumps(row) + "\n" for row in mine[start : start + 50])
            store.write(f"{FOLDER}{epoch}/{number:06}.jsonl", lines.encode())
        rows += mine
        at += 130 + STEPS + 300
    joiner = Joiner(store, FOLDER, ATTEMPTS, lambda: None)
    while joiner.step():
        pass
    return store, events, rows, Head(epoch=ATTEMPTS, owner=Owner.me(), restores=restores)


def test_a_reader_keeps_few_rows_of_a_run_that_has_moved_often(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store, events, rows, head = moved_often(tmp_path)
    monkeypatch.setattr("pipeline.state.rows.thin.MOST_ROWS", 200)  # and those not thinned: 601
    unreadable = Unreadable()
    reader = ThinReader(store, FOLDER, unreadable)
    few = reader.read()
    assert STEPS < len(few) <= 800
    assert few == reader.read()
    assert unreadable.count == 0
    assert sum(map(step_count, few)) == ATTEMPTS * STEPS
    assert [row for row in few if row["epoch"] == ATTEMPTS] == rows[-STEPS - 1 :]  # not joined yet
    assert [r for r in few if "loss" not in r] == [r for r in rows if "loss" not in r]
    for epoch in range(1, ATTEMPTS + 1):
        all_losses = [row["loss"] for row in rows if row["epoch"] == epoch and "loss" in row]
        losses = [row["loss"] for row in few if row["epoch"] == epoch and "loss" in row]
        assert (min(losses), max(losses)) == (min(all_losses), max(all_losses))
        assert (losses[0], losses[-1]) == (all_losses[0], all_losses[-1])
    full, thin = cost(events, rows, head), cost(events, few, head)
    assert full.seconds["recompute"] >= 10 * (ATTEMPTS - 1)
    for cause in CAUSES:
        assert thin.seconds[cause] == pytest.approx(full.seconds[cause], rel=0.01), cause


def test_rows_that_are_not_joined_yet_leave_out_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store, _, rows, _ = moved_often(tmp_path)
    before = ThinReader(store, FOLDER, Unreadable()).read()
    monkeypatch.setattr("pipeline.state.rows.thin.MOST_ROWS", len(before))
    log = MetricsLog(store, "run", "pretrain", ATTEMPTS)
    fast = steps(range(STEPS * ATTEMPTS, STEPS * ATTEMPTS + 3 * len(before)), rows[-1]["at"] + 1)
    log.adopt("".join(json.dumps(row) + "\n" for row in fast))
    log.flush()
    assert ThinReader(store, FOLDER, Unreadable()).read()[: len(before)] == before


def test_a_row_that_was_written_again_counts_once_however_few_rows_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store, _, rows, _ = moved_often(tmp_path)
    monkeypatch.setattr("pipeline.state.rows.thin.MOST_ROWS", 10)
    reader = ThinReader(store, FOLDER, Unreadable())
    reader.read()
    again = MetricsLog(store, "run", "pretrain", ATTEMPTS)  # it was not told that it was written
    end_of_first = [row for row in rows if row["epoch"] == 1][-30:]
    again.adopt("".join(json.dumps(row) + "\n" for row in end_of_first))
    again.flush()
    for found in (reader.read(), ThinReader(store, FOLDER, Unreadable()).read()):
        assert sum(map(step_count, found)) == ATTEMPTS * STEPS
