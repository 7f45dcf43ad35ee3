"""A watcher's sign of life says when it looked, what it knows, and until when it may be absent."""

import itertools
import json

import pytest

from pipeline.state.notes.watcher_beat import (
    BEAT,
    Saw,
    WatcherBeats,
    nobody_watches,
    read_beat,
    write_beat,
)
from pipeline.state.owner import Author
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from tests.support.hooked_store import Hooked, once


class Limited(FileStore):
    """A store whose number of commits is limited."""

    commits = True


def test_a_run_that_nobody_has_watched_has_no_beat_and_counts_as_silent(run):
    assert read_beat(run) is None
    assert nobody_watches(run, None, run.clock.now())


def test_a_beat_says_who_watches_since_when_and_from_when_on_somebody_must(run, time):
    write_beat(run, time.time + 7200)
    beat = read_beat(run)
    assert (beat.at, beat.by, beat.risk_at) == (time.time, Author.me(), time.time + 7200)
    assert not beat.too_old()


@pytest.mark.parametrize(("kind", "silent"), [(FileStore, 600), (Limited, 1200)])
def test_a_watcher_nobody_watches_after_ten_minutes_or_twenty_where_commits_are_limited(
    tmp_path, time, kind, silent
):
    run = RunState(kind(tmp_path), "demo", time.clock())
    write_beat(run, None)
    beat = read_beat(run)
    assert not nobody_watches(run, beat, time.time + silent - 1)
    assert nobody_watches(run, beat, time.time + silent)


@pytest.mark.parametrize(("kind", "every"), [(FileStore, 300), (Limited, 900)])
def test_beats_are_written_at_most_every_five_minutes_or_fifteen(tmp_path, time, kind, every):
    beats = WatcherBeats(RunState(kind(tmp_path), "demo", time.clock()), time.clock().now)
    written = []
    for _ in range(200):
        if beats.beat(None):
            written.append(time.time)
        time.sleep(10)
    assert {later - sooner for sooner, later in itertools.pairwise(written)} == {every}


def test_what_the_watcher_saw_is_written_with_the_beat(run):
    saw = Saw(state="late", slack=-60.0, reserve=2700.0, work_left=3600.0)
    write_beat(run, None, saw)
    assert read_beat(run).saw == saw
    write_beat(run, None)
    assert read_beat(run).saw is None


@pytest.mark.parametrize(("kind", "written"), [(FileStore, True), (Limited, False)])
def test_a_new_state_is_written_at_once_but_not_where_commits_are_limited(
    tmp_path, time, kind, written
):
    beats = WatcherBeats(RunState(kind(tmp_path), "demo", time.clock()), time.clock().now)
    saw = Saw(state="waiting", slack=9000.0, reserve=2700.0, work_left=3600.0)
    assert beats.beat(None, saw)
    time.sleep(10)
    assert not beats.beat(None, Saw({**saw, "slack": 8990.0})), "only its numbers have changed"
    assert beats.beat(None, Saw({**saw, "state": "arming"})) == written
    assert not beats.beat(None, Saw({**saw, "state": "arming"}))
    time.sleep(900)
    assert beats.beat(None, Saw({**saw, "state": "arming"}))


def test_a_store_that_fails_ends_no_watcher_and_the_next_look_tries_again(tmp_path, time):
    failing = Hooked(tmp_path)
    failing.before = once(StoreError("write", "it", "the service is down"))
    beats = WatcherBeats(RunState(failing, "demo", time.clock()), time.clock().now)
    assert not beats.beat(None)
    assert beats.beat(None)


def test_the_beat_of_an_older_watcher_is_too_old_and_of_a_newer_one_read(run):
    write_beat(run, None)
    record = json.loads(run.store.read(run.key(BEAT)))
    for knows in ({}, {"knows_deadlines": 0}):
        older = {k: v for k, v in record.items() if k != "knows_deadlines"} | knows
        run.store.write(run.key(BEAT), json.dumps(older).encode())
        assert read_beat(run).too_old()
    run.store.write(run.key(BEAT), json.dumps({**record, "mood": "good"}).encode())
    assert read_beat(run) is not None, "what a newer watcher adds is ignored"
