"""No record of others is trusted: each attack on each place of each record is refused or harmless.

records.py has the table of the records: a good document of each, its reader, and what it may have.
"""

import json

import pytest

from pion.files import is_sha256
from pipeline.state.head import data_key
from pipeline.state.shared.records import is_folder, state_key
from pipeline.state.stores.base import is_key
from tests.hostile.attacks import DEPTH, ESCAPE, nested, places
from tests.hostile.hostile_run import full_head, replace
from tests.hostile.in_process import ends_with, little_memory, pion
from tests.hostile.records import (
    FINGERPRINT,
    HEAD,
    IN_STATUS,
    LEFT,
    OLD,
    RECORDS,
    attacked,
    read_or_refused,
)
from tests.hostile.rows import ROWS

# Attacks that also go through a command.
SHOWN = ("escape", "-1")
NO_OBJECTS = [b"", b"\xff\xfe{}", b"[]", b"5", b"null", b'"x"', b"{", b"\0", nested(DEPTH).encode()]
NO_OBJECTS += ['{"format": 1}'.encode("utf-16"), "\ud800".encode("utf-8", "surrogatepass")]


@pytest.fixture
def run(run):
    """A run that somebody on another machine owns, with good records."""
    replace(run, "HEAD.json", full_head().to_json())
    for name, path in IN_STATUS.items():
        replace(run, path, json.dumps(RECORDS[name].good).encode())
    yield run
    run.store.delete(state_key(FINGERPRINT))


# A test for each attack would take pytest longer than the attack.


@pytest.mark.parametrize("name", RECORDS)
def test_a_value_is_one_that_its_record_may_have_or_it_is_refused(run, name):
    record = RECORDS[name]
    with little_memory():
        for case in record.cases():
            may, found = record.allows(case), attacked(record, run, case)
            assert may is None or may == (found is not None), case


@pytest.mark.parametrize("name", RECORDS)
def test_a_good_record_is_read_and_what_is_no_object_is_refused_or_absent(run, name):
    record = RECORDS[name]
    found = record.read(run, json.dumps(record.good).encode())
    assert found == record.good if name in (f"row of {n}" for n in ROWS) else found
    with little_memory():
        for data in NO_OBJECTS:
            assert read_or_refused(record, run, data)[0] is None, data[:20]


@pytest.mark.parametrize("name", ["HEAD", *(name for name in RECORDS if name.startswith("row"))])
def test_each_field_has_something_to_attack(name):
    good = RECORDS[name].good
    assert [place for place, value in places(good) if value is None or value in ({}, [])] == []


# The places of HEAD that are no name, time or count, by what may stand there. (records.py derives
# what HEAD may have from its types.)
FREE = {
    "-1": "stages.pretrain.result.steps stages.evaluate.result.sft stages.evaluate.result.sft.loss "
    "checkpoints.0.metrics.held_out_loss",
    "escape": "owner.session owner.pid_namespace owner.boot_id owner.host owner.launch_id "
    "owner.commit owner.dirty owner.versions.torch job stages.pretrain.digest "
    "stages.pretrain.result.steps stages.evaluate.digest stages.evaluate.result.sft "
    "stages.evaluate.result.sft.loss checkpoints.0.stage checkpoints.0.digest "
    "checkpoints.0.model_sha256 checkpoints.0.ancestor claims.0.owner.session "
    "claims.0.owner.pid_namespace claims.0.owner.boot_id claims.0.owner.host "
    "claims.0.owner.launch_id claims.0.owner.commit claims.0.owner.dirty "
    "claims.0.owner.versions.torch skipped.sft.0.digest skipped.sft.0.why write_ids.0",
}


@pytest.mark.parametrize("what", FREE)
def test_only_these_places_of_head_may_have_any_text_or_number(what):
    cases = [case for case in RECORDS["HEAD"].cases() if case.what == what]
    allowed = [case.path for case in cases if RECORDS["HEAD"].allows(case)]
    assert allowed == FREE[what].split()


@pytest.mark.parametrize(
    ("is_name", "good", "bad"),
    [
        (
            is_key,
            "checkpoints/sft/5-1",
            ["../../etc", "/etc/passwd", "a//b", "a\nb", "", ".", "a/.lock-x", ESCAPE, "-rf"],
        ),
        (is_sha256, "0" * 64, ["../" * 21 + "x", "0" * 63, "G" * 64, "A" * 64, "0" * 65, ""]),
        (is_folder, OLD, ["..", "../../../other", "/etc", "", ".", f"{OLD}/..", "A" * 32]),
    ],
)
def test_what_could_lead_out_of_a_store_is_no_name_in_a_record(is_name, good, bad):
    assert is_name(good)
    assert not [name for name in bad if is_name(name)]


# ---------------------------------------------------------------- through the commands


def status(run):
    """Return what `pion status` says. It must say something, without control characters."""
    output = ends_with(0, "status", run.url)
    assert not {"\x1b", "\x9b"} & set(output)
    return output


@pytest.mark.parametrize("name", IN_STATUS)
def test_a_status_shows_what_can_be_read_and_says_what_can_not(run, name):
    record = RECORDS[name]
    for case in (case for case in record.cases() if case.what in SHOWN):
        readable = attacked(record, run, case) is not None
        output = status(run)
        if record.shown:
            assert (record.shown in output) == readable, case
        if record.hidden:
            assert (record.hidden in output) != readable, case
        if name == "deadline":
            ended = pion("deadline", run.url, memory=None)
            assert (ended.code == 0) == readable, ended
            assert "\x1b" not in ended.out + ended.err


def test_a_status_shows_a_head_without_control_characters(run):
    head = RECORDS["HEAD"]
    for case in head.cases():
        if case.what in ("escape", "missing") and head.allows(case):
            replace(run, "HEAD.json", case.on(HEAD))
            status(run)


def test_a_damaged_record_of_shared_data_lets_nothing_be_deleted(run):
    run.store.write(f"{data_key(FINGERPRINT, LEFT)}/dataset.json", b"{}")
    record = RECORDS["shared data"]
    for case in record.cases():
        if case.what not in SHOWN or record.allows(case):
            continue
        run.store.write(state_key(FINGERPRINT), case.on(record.good))
        before = run.store.list()
        for more in ((), ("--prune", "--yes")):
            output = ends_with(2, "data", run.store.url, *more)
            assert output.count("error:") == 1
            assert "\x1b" not in output
            assert "Nothing was changed" in output
        assert run.store.list() == before


@pytest.mark.parametrize("name", IN_STATUS)
def test_a_file_that_is_no_record_ends_no_status(run, name):
    for data in (b"\xff\xfe", b"[]", nested(DEPTH).encode()):
        replace(run, IN_STATUS[name], data)
        output = status(run)
        assert RECORDS[name].hidden in output
        for other in IN_STATUS:
            shown = RECORDS[other].shown
            assert shown is None or (shown in output) == (other != name)
        assert ("deadline can't be read" in output) == (name == "deadline")
