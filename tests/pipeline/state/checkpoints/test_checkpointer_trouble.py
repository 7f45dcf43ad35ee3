"""Saves of a run that was taken over, or whose store fails."""

import threading
from functools import partial

import pytest

from pion.errors import Fenced
from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.checkpoints.uploader import UploaderDied
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import Missing, StoreError
from tests.pipeline.state.checkpoints.conftest import (
    a_checkpointer,
    checkpointer_in_this_process,
    flip_a_bit,
    newest,
    save,
    some_tensors,
)
from tests.support.hooked_store import Hooked, once
from tests.support.in_process_uploader import InProcessUploader
from tests.support.states import read, someone
from tests.support.waiting import PATIENCE_SECONDS


def fails_once(folder, *, outage):
    """Return a store that fails the first write of an optimizer's file."""
    store = Hooked(folder)
    store.before = once(StoreError("write", "it", "the disk is full", outage=outage), OPTIMIZER)
    return store


def test_a_fenced_checkpointer_lists_nothing_and_says_who_took_over(run):
    claim = claim_run(run, someone())
    checkpointer = a_checkpointer(claim)
    save(checkpointer, 10)
    claim_run(run, someone(host="gpu-9"), take_over=True)
    model, optimizer = some_tensors()
    checkpointer.save(model, optimizer, {"step": 20})
    with pytest.raises(Fenced, match="gpu-9"):
        checkpointer.wait()
    assert [entry.step for entry in read(run).checkpoints] == [10]
    checkpointer.save(model, optimizer, {"step": 30})
    with pytest.raises(Fenced):
        checkpointer.wait()
    with pytest.raises(Missing):  # fenced by then, so not even uploaded
        claim.store.read("demo/checkpoints/pretrain/30-1/config.json")


class Slow(InProcessUploader):
    """An uploader that is busy until it is closed."""

    def __init__(self, store):
        super().__init__(store)
        self.begun, self.closed = threading.Event(), threading.Event()

    def save(self, request):
        self.begun.set()
        assert self.closed.wait(PATIENCE_SECONDS), "the uploader is not closed"
        raise UploaderDied("save", request.key, "exit code -9")

    def close(self):
        self.closed.set()


def test_nobody_waits_for_an_upload_of_a_run_that_another_process_owns(run):
    claim = claim_run(run, someone())
    slow = Slow(claim.store)
    checkpointer = a_checkpointer(claim, uploader=slow)
    model, optimizer = some_tensors()
    checkpointer.save(model, optimizer, {"step": 20})
    assert slow.begun.wait(PATIENCE_SECONDS)
    claim_run(run, someone(host="gpu-9"), take_over=True)
    with pytest.raises(Fenced, match="gpu-9"):
        claim.confirm()
    with pytest.raises(Fenced, match="gpu-9"):
        checkpointer.wait()
    assert checkpointer.busy
    with pytest.raises(Fenced, match="gpu-9"):
        checkpointer.close()
    assert not checkpointer.busy


def test_a_failed_write_is_raised_by_the_next_save_and_the_one_after_works(tmp_path):
    claim = claim_run(RunState(fails_once(tmp_path, outage=False), "demo"), someone())
    checkpointer = checkpointer_in_this_process(claim)
    model, optimizer = some_tensors()
    checkpointer.save(model, optimizer, {"step": 10})
    while checkpointer.busy:
        threading.Event().wait(0.01)
    with pytest.raises(StoreError, match="the disk is full"):
        checkpointer.save(model, optimizer, {"step": 20})
    assert claim.state.read() == claim.head
    assert claim.head.checkpoints == ()
    save(checkpointer, 20)
    assert newest(claim)[0].step == 20


def test_files_of_a_failed_save_are_deleted_an_hour_after_the_next_commit(tmp_path, time):
    store = fails_once(tmp_path, outage=True)
    claim = claim_run(RunState(store, "demo", time.clock()), someone())
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    assert checkpointer.stats.outage is not None
    assert store.list("demo/checkpoints/pretrain/10-1/")
    save(checkpointer, 20)
    (left,) = claim.head.trash
    assert (left.key, left.not_before) == ("checkpoints/pretrain/10-1", time.time + 3600)
    time.time += 3601
    save(checkpointer, 30)
    assert store.list("demo/checkpoints/pretrain/10-1/") == []
    assert claim.head.trash == ()
    assert [entry.step for entry in claim.head.checkpoints] == [30, 20]


def test_a_store_that_corrupts_files_is_detected_before_the_commit(tmp_path):
    store = Hooked(tmp_path)
    model_file = tmp_path / "demo/checkpoints/pretrain/10-1" / MODEL
    store.after = once(partial(flip_a_bit, model_file), MODEL)
    claim = claim_run(RunState(store, "demo"), someone())
    checkpointer = checkpointer_in_this_process(claim)
    model, optimizer = some_tensors()
    checkpointer.save(model, optimizer, {"step": 10})
    with pytest.raises(StoreError, match=r"model.safetensors differs from the written data"):
        checkpointer.wait()
    assert claim.head.checkpoints == ()
