"""A run's deadline is written once by the first launch, and changed only on purpose."""

import dataclasses

import pytest

from pion.errors import BadInput
from pipeline.job import Deadline
from pipeline.state.notes.deadline import (
    DEADLINE,
    Asked,
    change_deadline,
    new_deadline,
    read_deadline,
    withdraw_first_deadline,
    write_first_deadline,
)
from pipeline.state.owner import Author
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import RunState
from tests.support.hooked_store import Hooked, once

IN_42_HOURS = Asked.of(Deadline(hours=42))


def first(run, asked=IN_42_HOURS):
    return write_first_deadline(run, new_deadline(asked, "pion launch", run.clock.now()))


def moved(present):
    return dataclasses.replace(present, at=present.at + 1, how="pion deadline")


def test_hours_count_from_the_launch_and_a_moment_is_itself(run, time):
    now = time.time
    assert read_deadline(run) is None
    assert first(run).at == now + 42 * 3600
    other = RunState(run.store, "other", run.clock)
    assert first(other, Asked.of(Deadline(at="2026-12-01T18:00Z"))).at == 1_796_148_000


def test_a_record_says_who_set_it_when_and_with_which_margin(run, time):
    first(run, Asked.of(Deadline(hours=2, margin=60)))
    found = read_deadline(run)
    assert (found.by, found.set_at, found.margin) == (Author.me(), time.time, 60)
    assert found.describe(time.time + 3600) == "1970-01-12 15:46:40 UTC (in 1 h 00 min)"
    assert found.describe(time.time + 9000) == "1970-01-12 15:46:40 UTC (30 min 00 s ago)"
    assert f"set by pion launch ({Author.me().describe()}) at" in found.describe_author()


@pytest.fixture
def meddled(tmp_path, time):
    """The run by a store in which a test lets something happen before a swap."""
    other = Hooked(tmp_path / "runs")
    return RunState(other, "demo", time.clock()), other


def test_of_two_launches_at_once_the_first_one_decides(run, meddled, time):
    slower, store = meddled
    store.before = once(lambda: first(run, Asked.of(Deadline(hours=1))))
    assert first(slower).at == time.time + 3600


def test_a_change_is_made_again_on_what_another_process_has_just_written(run, meddled):
    before = first(run).at
    slower, store = meddled

    def by_another(record):  # no two processes write the same
        return dataclasses.replace(moved(record), by=Author("host-b", 7, "ann"))

    store.before = once(lambda: change_deadline(run, by_another))
    assert change_deadline(slower, moved).at == before + 2


def test_a_refused_rental_takes_its_deadline_back_unless_it_was_changed(run):
    record = first(run)
    withdraw_first_deadline(run, record)
    assert read_deadline(run) is None
    record = first(run)
    changed = change_deadline(run, moved)
    withdraw_first_deadline(run, record)
    assert read_deadline(run) == changed


def test_a_damaged_record_is_refused_with_the_command_that_replaces_it(run):
    record = first(run)
    run.store.write(run.key(DEADLINE), b'{"format": 1}')
    with pytest.raises(Damaged, match=r"at is missing.*pion deadline .*/demo --hours N"):
        first(run)
    assert change_deadline(run, lambda old: old or record, replace_damaged=True) == record
    assert read_deadline(run) == record


def test_the_record_of_a_newer_pion_is_never_replaced(run):
    record = first(run)
    newer = b'{"format": 2, "at": 5}'
    run.store.write(run.key(DEADLINE), newer)
    with pytest.raises(BadInput, match="format version 2"):
        change_deadline(run, lambda old: old or record, replace_damaged=True)
    assert run.store.read(run.key(DEADLINE)) == newer
