"""Checkpoints: a restored save is exactly what was saved."""

import sys
import threading

import pytest
import torch

from pipeline.state.checkpoints.restore import FoundCheckpoint
from pipeline.state.claim import claim_run
from pipeline.state.rows.metrics import MetricsLog, read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.state.checkpoints.conftest import (
    a_checkpointer,
    assert_same,
    checkpointer_in_this_process,
    newest,
    save,
    some_tensors,
)
from tests.support.states import an_entry, someone
from tests.support.waiting import run_to_end


class Gate(FileStore):
    """A store in which writing a model waits until `open` is set."""

    def __init__(self, folder):
        super().__init__(folder)
        self.open = threading.Event()

    def write(self, key, data):
        if key.endswith("model.safetensors"):
            assert self.open.wait(60)
        super().write(key, data)


def test_what_is_saved_comes_back_exactly(claim):
    model, optimizer = some_tensors()
    before = an_entry(5, epoch=0)
    resumed = FoundCheckpoint(before, folder=None, skipped=[])
    checkpointer = a_checkpointer(claim, resumed=resumed)
    state = {"step": 10, "next_row": 80, "rng": [1, 2**63, 0.1], "plan": {"threads": 2}}
    assert checkpointer.save(model, optimizer, state)
    checkpointer.close()

    entry, loaded, skipped = newest(claim)
    assert skipped == []
    assert_same(loaded.model, model)
    assert_same(loaded.optimizer, optimizer)
    assert loaded.state == {**state, "stage": "pretrain", "digest": "d1"}
    assert (entry.step, entry.epoch, entry.digest) == (10, 1, "d1")
    assert entry.key == "checkpoints/pretrain/10-1"
    assert entry.ancestor == before.key == "checkpoints/pretrain/5-0"
    assert checkpointer.last == entry
    assert checkpointer.stats.durable_step == 10
    sizes = {
        found.key.rpartition("/")[2]: found.size for found in claim.store.list(f"demo/{entry.key}/")
    }
    assert entry.bytes == sum(sizes.values()) - sizes["manifest.json"]
    assert list(sizes) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_snapshot_is_taken_before_save_returns(run, tmp_path):
    gate = Gate(tmp_path)
    claim = claim_run(RunState(gate, "demo"), someone())
    model, optimizer = some_tensors()
    expected = {name: tensor.clone() for name, tensor in model.items()}
    checkpointer = checkpointer_in_this_process(claim)
    checkpointer.save(model, optimizer, {"step": 1})
    for tensor in (*model.values(), *optimizer.values()):
        tensor.zero_()  # training continues
    gate.open.set()
    checkpointer.wait()
    assert_same(newest(claim)[1].model, expected)


def test_a_save_that_finds_the_previous_one_writing_is_skipped(tmp_path):
    gate = Gate(tmp_path)
    claim = claim_run(RunState(gate, "demo"), someone())
    checkpointer = checkpointer_in_this_process(claim)
    model, optimizer = some_tensors()
    assert checkpointer.save(model, optimizer, {"step": 1}) is True
    assert checkpointer.save(model, optimizer, {"step": 2}) is False
    gate.open.set()
    checkpointer.wait()
    assert newest(claim)[0].step == 1
    assert checkpointer.save(model, optimizer, {"step": 3}) is True
    checkpointer.wait()
    assert newest(claim)[0].step == 3


def test_saving_a_step_that_is_durable_already_writes_nothing(claim):
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    before = claim.store.read("demo/HEAD.json")
    save(checkpointer, 10)
    assert claim.store.read("demo/HEAD.json") == before


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_owner(run):
    hashes = set()
    for _ in range(2):
        claim = claim_run(run, someone(), take_over=True)
        model, optimizer = some_tensors()
        shuffled = dict(reversed(model.items()))
        checkpointer = checkpointer_in_this_process(claim)
        checkpointer.save(shuffled if hashes else model, optimizer, {"step": 1})
        checkpointer.wait()
        hashes.add(checkpointer.last.model_sha256)
    assert len(hashes) == 1


def test_a_result_is_noted_in_its_checkpoint_without_waiting(tmp_path):
    gate = Gate(tmp_path)
    claim = claim_run(RunState(gate, "demo"), someone())
    checkpointer = checkpointer_in_this_process(claim)
    checkpointer.save(*some_tensors(), {"step": 10})
    checkpointer.note(10, {"held_out_loss": 3.5})  # its save is still on its way
    assert checkpointer.busy
    assert claim.head.checkpoints == ()
    gate.open.set()
    checkpointer.wait()
    checkpointer.note(20, {"held_out_loss": 2.5})  # never saved
    checkpointer.wait()
    (entry,) = claim.head.checkpoints
    assert (entry.step, entry.metrics) == (10, {"held_out_loss": 3.5})


def test_metrics_are_durable_when_the_checkpoint_that_covers_them_is(claim):
    metrics = MetricsLog(claim.store, "demo", "pretrain", claim.epoch)
    checkpointer = checkpointer_in_this_process(claim, metrics=metrics)
    metrics.append({"step": 10, "loss": 3.0})
    save(checkpointer, 10)
    rows = read_metrics(claim.store, "demo", claim.head, "pretrain")
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 3.0)]


def test_state_that_is_not_json_is_refused_at_the_save(claim):
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpointer_in_this_process(claim).save(*some_tensors(), {"step": 1, "rng": torch.ones(1)})


def test_reading_head_and_status_needs_no_torch():
    code = (
        "import sys, pipeline.state.checkpoints.checkpointer, pipeline.state.rows.metrics;"
        "import pipeline.state.stores;"
        "print([m for m in ('torch', 'numpy', 'ray', 'pydantic') if m in sys.modules])"
    )
    assert run_to_end([sys.executable, "-c", code], check=True).stdout == "[]\n"
