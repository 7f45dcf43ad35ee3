"""A fork shares the prepared data of its store; another store gets one copy for all forks."""

import shutil

import pytest

from pion.errors import PionError
from pipeline.commands.fork import fork_run
from pipeline.state.claim import claim_run
from pipeline.state.head import SHARED, data_key
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.shared.find_or_prepare import find_or_prepare
from pipeline.state.shared.folder import bring_data, complete
from pipeline.state.shared.records import DataState, Writer, read_state, swap_state
from pipeline.state.stores import FileStore, open_store
from tests.faults.faulty_store import Crash, FaultyStore
from tests.support.light_run import light_run
from tests.support.states import read as head_of

FINGERPRINTS = {"pretrain": "a" * 64, "sft": "b" * 64}


@pytest.fixture(params=["file", "s3"])
def elsewhere(request, tmp_path, monkeypatch):
    """Another store, of which this machine has no copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_store"))
    return FileStore(tmp_path / "elsewhere")


@pytest.fixture
def source(tmp_path, time):
    """A run with data of these fingerprints."""
    run = light_run(FileStore(tmp_path / "runs"), clock=time.clock())
    claim, me = claim_run(run, Owner.me()), Owner.me()
    keys = {}
    for part, fingerprint in FINGERPRINTS.items():
        files = tmp_path / part
        (files / "0").mkdir(parents=True)
        (files / "0" / "rows.npy").write_bytes(part.encode())
        (files / "dataset.json").write_text("{}")
        begun = find_or_prepare(run, fingerprint, claim.epoch, me, lambda writer, seconds: None)
        assert isinstance(begun, Writer)
        folder = complete(run, fingerprint, begun, files, (part,))
        keys[part] = data_key(fingerprint, folder)
    claim.commit(lambda head: head.with_data(keys))
    claim.release()
    return run


def fork(source, store, name="new"):
    """Return a fork, and what was said."""
    said = []
    target = RunState(store, name)
    fork_run(source, head_of(source), target, say=said.append)
    return target, said


def shared(store):
    return {entry.key: store.read(entry.key) for entry in store.list(f"{SHARED}/")}


def check_data(run):
    """Check that the run can use both parts of its data."""
    head = head_of(run)
    for part in FINGERPRINTS:
        folder = bring_data(run, head, part)
        assert (folder / "0" / "rows.npy").read_bytes() == part.encode()


def test_in_its_store_a_fork_lists_the_same_data_and_copies_nothing(source):
    before = shared(source.store)
    new, said = fork(source, source.store)
    assert head_of(new).data == head_of(source).data
    assert shared(source.store) == before
    assert list(source.store.list("new/data/")) == []
    assert not any("data" in line for line in said)
    check_data(new)


def test_a_fork_removes_the_mark_of_its_data(source):
    state, version = read_state(source.store, FINGERPRINTS["sft"])
    marked = DataState(**{**vars(state), "delete_after": 1.0})
    assert swap_state(source.store, FINGERPRINTS["sft"], marked, version)
    fork(source, source.store)
    assert read_state(source.store, FINGERPRINTS["sft"])[0].delete_after is None


def test_two_forks_to_another_store_share_one_copy(source, elsewhere, tmp_path):
    first, said = fork(source, elsewhere)
    assert sum("copying prepared data" in line for line in said) == 2
    before = shared(elsewhere)
    second, said = fork(source, elsewhere, "second")
    assert not any("prepared data" in line for line in said)
    assert shared(elsewhere) == before
    assert head_of(first).data == head_of(second).data
    assert head_of(first).data.keys() == FINGERPRINTS.keys()
    assert read_state(elsewhere, FINGERPRINTS["sft"])[0].sources == ("sft",)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    for run in (first, second):
        check_data(run)


def test_a_fork_that_dies_at_any_operation_on_data_is_completed_and_shares_one_copy(
    source, tmp_path, monkeypatch
):
    """A dead fork keeps no other fork waiting: it has no HEAD yet."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    unbroken = FaultyStore(FileStore(tmp_path / "unbroken"))
    fork(source, unbroken)
    head = unbroken.operations.index("swap new/HEAD.json")
    on_data = [n for n, text in enumerate(unbroken.operations[:head], 1) if f" {SHARED}/" in text]
    assert len(on_data) > 4
    for number in on_data:
        folder = tmp_path / f"at {number}"
        with pytest.raises(Crash):
            fork(source, FaultyStore(FileStore(folder), number))
        second, _ = fork(source, FileStore(folder), "second")
        new, _ = fork(source, FileStore(folder))
        assert head_of(new).data == head_of(second).data
        check_data(new)


def test_data_that_was_deleted_by_hand_is_not_forked(source, elsewhere):
    key = head_of(source).data["sft"]
    (source.store.folder / key / "dataset.json").unlink()
    with pytest.raises(PionError, match=r"dataset.json is missing.* --redo prepare"):
        fork(source, elsewhere)
    assert RunState(elsewhere, "new").read() is None
    assert read_state(elsewhere, FINGERPRINTS["sft"])[0].folder is None
