"""A request to stop stays until it is cleared, and a damaged request stops nothing."""

import pytest

from pipeline.state.notes.stop_requests import ask_stop, clear_handovers, clear_stops, pending_stop
from pipeline.state.run_state import RunState


def test_a_run_nobody_has_asked_to_stop_has_no_request(run):
    assert pending_stop(run) is None
    assert clear_stops(run) == 0


def test_a_request_says_who_asked_when_and_why(run, time):
    asked = ask_stop(run, "pion stop")
    assert pending_stop(run) == pending_stop(run) == asked, "reading does not clear it"
    assert asked.at == time.time
    assert asked.by.user in asked.describe()
    assert asked.by.host in asked.describe()
    assert "1970-01-12 13:46:40 UTC" in asked.describe()


def test_the_newest_of_several_requests_counts_and_all_are_cleared(run, time):
    for reason in ("first", "second", "third"):
        ask_stop(run, reason)
        time.sleep(1.0)
    assert pending_stop(run).reason == "third"
    assert clear_stops(run) == 3
    assert pending_stop(run) is None


def test_a_request_of_a_person_stays_when_those_to_hand_over_are_cleared(run):
    asked = ask_stop(run, "pion stop")
    ask_stop(run, "pion hop", except_launch="new")
    assert clear_handovers(run) == 1
    assert pending_stop(run) == asked


def test_a_request_to_one_run_leaves_its_neighbours_alone(run):
    ask_stop(run, "pion stop")
    assert pending_stop(RunState(run.store, "demo-2")) is None
    assert pending_stop(RunState(run.store, "dem")) is None


@pytest.mark.parametrize(
    "content", [b"{", b'{"format": 1, "kind": "dance", "at": 1}', b'{"format": 99, "kind": "stop"}']
)
def test_a_file_that_is_not_a_request_is_reported_and_ignored(run, content):
    run.store.write(run.key("requests/0.json"), content)
    notes = []
    assert pending_stop(run, notes.append) is None
    (note,) = notes
    assert "requests/0.json" in note
    asked = ask_stop(run, "pion stop")
    assert pending_stop(run) == asked  # the damaged one does not hide it
    clear_stops(run)
    assert run.store.list(run.key("requests/")) == []
