"""A save whose state is copied next to the following step, as on a card."""

import threading

import pytest
import torch

from pion.train.side_copy import SideCopy
from pipeline.state.checkpoints.snapshot import Snapshot
from tests.pipeline.state.checkpoints.conftest import (
    assert_same,
    checkpointer_in_this_process,
    newest,
    some_tensors,
)
from tests.support.late_streams import LateStreams


class SlowCard(LateStreams):
    """A card that copies only when its update waits for the copies, or fails with `error` first."""

    def __init__(self, error=None):
        super().__init__()
        self._copied, self._error = threading.Event(), error

    def wait_event(self, event):
        super().wait_event(event)
        self._copied.set()

    def synchronize(self):
        if self._error is not None:
            raise RuntimeError(self._error)
        assert self._copied.wait(60)


def test_a_save_next_to_a_step_is_written_after_its_copies(claim):
    checkpointer = checkpointer_in_this_process(claim)
    model, optimizer = some_tensors()
    expected = {name: tensor.clone() for name, tensor in model.items()}
    side_copy = SideCopy(SlowCard())
    assert checkpointer.save(model, optimizer, {"step": 1}, side_copy) is True
    assert checkpointer.busy
    assert checkpointer.save(model, optimizer, {"step": 2}, side_copy) is False
    assert newest(claim)[0] is None
    side_copy.before_update()
    for tensor in (*model.values(), *optimizer.values()):
        tensor.zero_()  # the update
    checkpointer.wait()
    entry, loaded, _ = newest(claim)
    assert entry.step == 1
    assert_same(loaded.model, expected)
    stats = checkpointer.stats
    assert stats.copy_seconds > stats.stall_seconds


def test_a_card_that_fails_during_a_copy_leaves_the_last_checkpoint(claim):
    checkpointer = checkpointer_in_this_process(claim)
    assert checkpointer.save(*some_tensors(), {"step": 10})
    checkpointer.wait()
    side_copy = SideCopy(SlowCard("CUDA error: unspecified launch failure"))
    assert checkpointer.save(*some_tensors(), {"step": 20}, side_copy)
    with pytest.raises(RuntimeError, match="launch failure"):
        checkpointer.wait()
    assert newest(claim)[0].step == 10
    assert list(claim.store.list("demo/checkpoints/pretrain/20-1/")) == []


def test_a_snapshot_is_freed_only_after_the_copies_into_it():
    streams, snapshot = LateStreams(), Snapshot()
    snapshot.take(*some_tensors(), {}, SideCopy(streams))
    snapshot.close()
    assert streams.order[-1] == "the host waits for the copies"


def test_a_snapshot_of_other_shapes_waits_for_the_copies_into_the_old_memory():
    streams, snapshot = LateStreams(), Snapshot()
    snapshot.take({"weight": torch.ones(8)}, {}, {}, SideCopy(streams))
    snapshot.take({"weight": torch.ones(9)}, {}, {})
    assert streams.order[-1] == "the host waits for the copies"
