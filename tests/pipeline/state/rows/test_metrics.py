"""Metrics and events: each row is written once, and repeated work never shows twice."""

import tempfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.state.head import Head
from pipeline.state.rows.metrics import (
    EventLog,
    MetricsLog,
    kept_rows,
    read_all_metrics,
    read_events,
    read_metrics,
)
from pipeline.state.rows.row_types import Unreadable
from pipeline.state.rows.segments import Replaced
from pipeline.state.rows.thin import ThinReader
from pipeline.state.stores import FileStore, StoreError
from tests.support.hooked_store import Hooked, once
from tests.support.waiting import join


def log_steps(store, epoch, steps, stage="pretrain"):
    log = MetricsLog(store, "demo", stage, epoch)
    for step in steps:
        log.append({"step": step})
    log.flush()
    return log


def read(store, restores):
    rows = read_metrics(store, "demo", Head(restores=restores), "pretrain")
    return [(row["step"], row["epoch"]) for row in rows]


def test_rows_come_back_with_their_step_epoch_and_time(store):
    log = MetricsLog(store, "demo", "pretrain", 3, now=lambda: 12.5)
    log.append({"step": 1, "loss": 2.5})
    log.flush()
    assert read_metrics(store, "demo", Head(), "pretrain") == [
        {"step": 1, "loss": 2.5, "epoch": 3, "at": 12.5}
    ]
    assert read_metrics(store, "demo", Head(), "sft") == []


def test_each_flush_writes_one_new_segment_and_an_empty_one_none(store):
    log = log_steps(store, 1, range(3))
    log.flush()
    log.append({"step": 3})
    log.flush()
    assert [entry.key for entry in store.list("demo/metrics/")] == [
        "demo/metrics/pretrain/1/000000.jsonl",
        "demo/metrics/pretrain/1/000001.jsonl",
    ]
    log_steps(store, 1, range(4, 5))  # a second log of the same epoch overwrites nothing
    assert read(store, {}) == [(step, 1) for step in range(5)]


def test_a_reader_reads_each_file_once_and_notices_that_files_are_gone(store, monkeypatch):
    log_steps(store, 1, range(2))
    reader = ThinReader(store, "demo/metrics/pretrain/", Unreadable())
    read = []
    read_file = FileStore.read

    def counted(store, key, *limit):
        read.append(key)
        return read_file(store, key, *limit)

    monkeypatch.setattr(FileStore, "read", counted)

    def steps():
        return sorted(row["step"] for row in reader.read())

    assert steps() == steps() == [0, 1]
    log_steps(store, 1, range(2, 3))
    log_steps(store, 2, range(3, 4))
    assert steps() == [0, 1, 2, 3]
    assert len(read) == len({*read})
    store.delete("demo/metrics/pretrain/1/000000.jsonl")
    with pytest.raises(Replaced):
        steps()


def test_a_row_without_a_step_is_refused(store):
    with pytest.raises(ValueError, match="needs a step"):
        MetricsLog(store, "demo", "pretrain", 1).append({"loss": 1.0})


def test_rows_of_repeated_work_can_be_read_too(store):
    log_steps(store, 1, range(1, 4))
    log_steps(store, 2, range(2, 4))
    rows = read_all_metrics(store, "demo", "pretrain")
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]
    head = Head(restores={2: {"pretrain": 1}})
    assert kept_rows(rows, head, "pretrain") == [rows[0], rows[3], rows[4]]


def test_many_segments_come_back_in_the_order_they_were_written(store):
    for step in range(60):
        log_steps(store, 1 + step // 30, range(step, step + 1))
    assert [row["step"] for row in read_all_metrics(store, "demo", "pretrain")] == [*range(60)]


def test_a_fresh_start_drops_everything_even_step_0(store):
    log_steps(store, 1, range(4))
    log_steps(store, 2, range(2))
    assert read(store, {2: {"pretrain": 0}}) == [(0, 2), (1, 2)]


def test_another_stages_restore_drops_nothing(store):
    log_steps(store, 1, range(1, 4))
    assert len(read(store, {2: {"sft": 0}})) == 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), min_size=1, max_size=6))
def test_however_often_a_run_is_cut_each_step_shows_once(attempts):
    """Attempt n resumes from any step up to the end of attempt n - 1, and makes some steps."""
    with tempfile.TemporaryDirectory() as folder:
        store, end, restores = FileStore(folder), 0, {}
        expected = {}
        for epoch, (wish, length) in enumerate(attempts, 1):
            begin = min(wish, end)
            restores[epoch] = {"pretrain": begin}
            end = begin + length
            expected = {step: owner for step, owner in expected.items() if step <= begin}
            expected |= dict.fromkeys(range(begin + 1, end + 1), epoch)
            log_steps(store, epoch, range(begin + 1, end + 1))
        assert read(store, restores) == sorted(expected.items())


def test_rows_survive_a_failed_flush(store):
    failing = Hooked(store.folder)
    failing.before = once(StoreError("write", "it", "the disk is full"))
    log = MetricsLog(failing, "demo", "pretrain", 1)
    log.append({"step": 1})
    with pytest.raises(StoreError):
        log.flush()
    log.append({"step": 2})
    log.flush()
    assert read(store, {}) == [(1, 1), (2, 1)]


def test_rows_can_be_appended_while_others_are_being_written(store):
    slow, writing, go_ahead = Hooked(store.folder), threading.Event(), threading.Event()
    slow.before = lambda operation: (writing.set(), go_ahead.wait(60))
    log = MetricsLog(slow, "demo", "pretrain", 1)
    log.append({"step": 1})
    flush = threading.Thread(target=log.flush)
    flush.start()
    assert writing.wait(60)
    log.append({"step": 2})
    go_ahead.set()
    join(flush)
    assert read(store, {}) == [(1, 1)]
    log.flush()
    assert read(store, {}) == [(1, 1), (2, 1)]


def test_events_come_back_in_the_order_they_happened(store):
    for epoch in (2, 10, 1):
        log = EventLog(store, "demo", epoch, now=lambda epoch=epoch: float(epoch))
        log.append("claimed", host="gpu")
        log.flush()
        log.append("stopped")
        log.flush()
    events = read_events(store, "demo")
    assert [(event["epoch"], event["event"]) for event in events] == [
        (epoch, event) for epoch in (1, 2, 10) for event in ("claimed", "stopped")
    ]
    assert events[0] == {"event": "claimed", "host": "gpu", "epoch": 1, "at": 1.0}


def test_an_event_whose_acknowledgement_was_lost_happened_once(store):
    losing = Hooked(store.folder)
    losing.after = once(StoreError("write", "it", "the connection was lost"))
    log = EventLog(losing, "demo", 1)
    log.append("training", stage="sft")
    with pytest.raises(StoreError):
        log.flush()
    log.append("hop", stage="sft", receipt=[])
    log.flush()
    assert [event["event"] for event in read_events(store, "demo")] == ["training", "hop"]


def test_reading_ignores_files_that_are_not_segments(store):
    log_steps(store, 1, range(1))
    store.write("demo/metrics/pretrain/1/notes.txt", b"hello")
    assert read(store, {}) == [(0, 1)]
