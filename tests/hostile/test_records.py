"""No record of a store is trusted: each attack on each place of each record is refused or harmless.

records.py has the table of the records: a good document of each, its reader, and what it may have.
"""

import json
from collections.abc import Callable

import pytest

from pipeline.state.head import data_key
from pipeline.state.shared.records import state_key
from tests.hostile.hostile_run import ends_with, full_head, pion, replace
from tests.hostile.record_attacks import DEPTH, Attack, attacks_on, nested, places
from tests.hostile.records import (
    FINGERPRINT,
    HEAD,
    IN_STATUS,
    LEFT,
    RECORDS,
    head_may,
    read_or_refused,
)
from tests.hostile.rows import ROWS

# Attacks that also go through a command.
SHOWN = ("escape", "-1")
NOTHING = [b"", b"\xff\xfe", b"[]", b"{", nested(DEPTH).encode()]


@pytest.fixture
def run(run):
    """A run that somebody on another machine owns, with good records."""
    replace(run, "HEAD.json", full_head().to_json())
    for name, path in IN_STATUS.items():
        replace(run, path, json.dumps(RECORDS[name].good).encode())
    yield run
    run.store.delete(state_key(FINGERPRINT))


def attacks(name, only: Callable[[Attack], bool]):
    """Return the attacks on a record. A test for each would take pytest longer than the attack."""
    return filter(only, attacks_on(RECORDS[name].good))


def status(run, capsys):
    """Return what `pion status` says. It must say something, without control characters."""
    output = ends_with(0, capsys, "status", run.url)
    assert "\x1b" not in output
    assert "\x9b" not in output
    return output


@pytest.mark.parametrize("name", RECORDS)
def test_a_value_is_one_that_its_record_may_have_or_it_is_refused(run, name):
    record = RECORDS[name]
    for case in attacks_on(record.good):
        may, found = record.may(case), read_or_refused(record, run, case)
        assert may is None or may == (found is not None), case


@pytest.mark.parametrize("name", RECORDS)
def test_a_good_record_is_read(run, name):
    record = RECORDS[name]
    found = record.read(run, json.dumps(record.good).encode())
    assert found == record.good if name in (f"row of {n}" for n in ROWS) else found


@pytest.mark.parametrize("name", ["HEAD", *(name for name in RECORDS if name.startswith("row"))])
def test_each_field_has_something_to_attack(name):
    good = RECORDS[name].good
    assert [place for place, value in places(good) if value is None or value in ({}, [])] == []


# ---------------------------------------------------------------- through the commands


@pytest.mark.parametrize("name", IN_STATUS)
def test_a_status_shows_what_can_be_read_and_says_what_can_not(run, name, capsys):
    record = RECORDS[name]
    for case in attacks(name, lambda case: case.what in SHOWN):
        readable = read_or_refused(record, run, case) is not None
        output = status(run, capsys)
        if record.shown:
            assert (record.shown in output) == readable, case
        if record.hidden:
            assert (record.hidden in output) != readable, case
        if name == "deadline":
            code, output = pion(capsys, "deadline", run.url)
            assert (code == 0) == readable, output
            assert "\x1b" not in output


def test_a_status_shows_a_head_without_control_characters(run, capsys):
    for case in attacks("HEAD", lambda case: case.what in ("escape", "missing") and head_may(case)):
        replace(run, "HEAD.json", case.on(HEAD))
        status(run, capsys)


def test_a_damaged_record_of_shared_data_lets_nothing_be_deleted(run, capsys):
    run.store.write(f"{data_key(FINGERPRINT, LEFT)}/dataset.json", b"{}")
    record = RECORDS["shared data"]
    for case in attacks("shared data", lambda case: case.what in SHOWN and not record.may(case)):
        run.store.write(state_key(FINGERPRINT), case.on(record.good))
        before = run.store.list()
        for more in ((), ("--prune", "--yes")):
            output = ends_with(2, capsys, "data", run.store.url, *more)
            assert output.count("error:") == 1
            assert "\x1b" not in output
            assert "Nothing was changed" in output
        assert run.store.list() == before


@pytest.mark.parametrize("name", IN_STATUS)
@pytest.mark.parametrize("data", NOTHING, ids=lambda data: repr(data[:9]))
def test_a_file_that_is_no_record_ends_no_status(run, name, data, capsys):
    replace(run, IN_STATUS[name], data)
    output = status(run, capsys)
    assert RECORDS[name].hidden in output
    for other in IN_STATUS:
        shown = RECORDS[other].shown
        assert shown is None or (shown in output) == (other != name)
    assert ("deadline can't be read" in output) == (name == "deadline")
