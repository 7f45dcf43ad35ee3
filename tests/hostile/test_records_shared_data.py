"""A record of shared data that can't be read is named, and never leads to what is not data."""

import dataclasses
import json

import pytest

from pion.errors import BadInput
from pipeline.state.head import SHARED, data_key
from pipeline.state.shared.find_or_prepare import confirm
from pipeline.state.shared.prune import delete_due, list_shared, mark
from pipeline.state.shared.records import Unneeded, state_key
from pipeline.state.stores import FileStore
from pipeline.state.stores.clock import Clock
from tests.hostile.attacks import DEPTH, ESCAPE, nested
from tests.hostile.hostile_run import NOW, as_json, make_hostile_run, replace
from tests.hostile.in_process import ends_with
from tests.hostile.records import DATA, FINGERPRINT, LEFT, OLD


@pytest.fixture
def store(tmp_path):
    store = FileStore(tmp_path / "runs")
    for folder in (OLD, LEFT):
        store.write(f"{data_key(FINGERPRINT, folder)}/dataset.json", b"{}")
    return store


def put(store, data):
    store.write(state_key(FINGERPRINT), data)


@pytest.mark.parametrize("data", [b"", b"[]", nested(DEPTH).encode()], ids=["", "[]", "deep"])
def test_what_is_no_record_is_named(store, data):
    put(store, data)
    output = ends_with(2, "data", store.url, "--prune", "--yes")
    assert "state.json is damaged" in output
    assert "Delete this file. The runs that use this data keep it" in output
    store.delete(state_key(FINGERPRINT))
    output = ends_with(0, "data", store.url)
    assert FINGERPRINT[:12] in output


@pytest.mark.parametrize("change", [{"format": 3}, {"shared_since": NOW}])
def test_a_record_of_a_newer_pion_is_left_alone(store, change):
    data = json.dumps({**as_json(DATA), **change}).encode()
    put(store, data)
    for more in ((), ("--json",), ("--prune", "--yes")):
        output = ends_with(2, "data", store.url, *more)
        assert f"{FINGERPRINT}/state.json has" in output
        assert "pdate" in output
    with pytest.raises(BadInput, match=r"Update pion|update this pion"):
        confirm(store, FINGERPRINT, OLD)
    assert store.read(state_key(FINGERPRINT)) == data


FAR = "../../../other"
FARS = {
    "folder": {"folder": FAR},
    "unneeded": {"unneeded": (Unneeded(FAR, NOW),)},
    "writer": {"writer": dataclasses.replace(DATA.writer, folder=FAR)},
}


@pytest.mark.parametrize("place", FARS)
def test_a_record_can_name_nothing_but_a_folder_of_data(store, tmp_path, place):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    state = dataclasses.replace(DATA, **{"writer": None} | FARS[place])
    put(store, json.dumps(as_json(state)).encode())
    for prune in (
        lambda: mark(store, [FINGERPRINT], Clock()),
        lambda: delete_due(store, Clock()),
        lambda: list_shared(store, Clock()),
    ):
        with pytest.raises(BadInput, match=r"state\.json is damaged"):
            prune()
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_names_that_are_no_fingerprints_are_no_data(store):
    for name in ("x", "F" * 64, "f" * 63):
        store.write(f"{SHARED}/{name}/state.json", b"no record")
        store.write(f"{SHARED}/{name}/{OLD}/dataset.json", b"{}")
    assert [one.fingerprint for one in list_shared(store, Clock())] == [FINGERPRINT]


def test_texts_of_others_reach_the_terminal_without_control_characters(store):
    put(store, json.dumps({**as_json(DATA), "sources": [ESCAPE], "writer": None}).encode())
    output = ends_with(0, "data", store.url)
    assert "\x1b" not in output
    assert "\x9b" not in output


@pytest.mark.parametrize("data", [b"", b"{", b'{"format": 9}'], ids=repr)
def test_nothing_is_deleted_while_a_head_cant_be_read(store, tmp_path, data):
    put(store, json.dumps({**as_json(DATA), "writer": None}).encode())
    run = make_hostile_run(tmp_path / "runs")
    replace(run, "HEAD.json", data)
    for more in ((), ("--prune", "--yes")):
        output = ends_with(2, "data", store.url, *more)
        assert "demo/HEAD.json" in output
    with pytest.raises(BadInput, match=r"demo/HEAD\.json"):
        delete_due(store, Clock())
    for folder in (OLD, LEFT):
        assert store.read(f"{data_key(FINGERPRINT, folder)}/dataset.json")
