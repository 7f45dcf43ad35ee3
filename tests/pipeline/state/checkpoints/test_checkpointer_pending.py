"""The state of a save after each event between its begin and its commit."""

from pathlib import Path

from pipeline.state.checkpoints.checkpointer import PendingCommit
from pipeline.state.checkpoints.restore import FoundCheckpoint
from pipeline.state.head import Head
from tests.support.states import an_entry


def test_it_begins_with_the_checkpoint_that_training_resumed_from():
    entry = an_entry(10, ancestor="checkpoints/pretrain/5-1")
    listed = PendingCommit(FoundCheckpoint(entry, Path("x"), []))
    assert (listed.last, listed.ancestor, listed.newest_key) == (entry, entry.key, None)
    copy = PendingCommit(FoundCheckpoint(entry, Path("x"), [], listed=False))
    assert (copy.last, copy.ancestor, copy.newest_key) == (None, entry.ancestor, entry.key)
    fresh = PendingCommit(FoundCheckpoint(None, None, []))
    assert (fresh.last, fresh.ancestor, fresh.newest_key) == (None, None, None)


def test_a_commit_that_landed_unacknowledged_is_the_ancestor_of_the_next_save():
    pending = PendingCommit()
    pending.begin(an_entry(10).key)
    pending.uploaded(an_entry(10))
    assert pending.look_for_landed(Head()) is None
    assert pending.ancestor is None
    landed = an_entry(10)
    assert pending.look_for_landed(Head(checkpoints=(landed, an_entry(5, epoch=0)))) == landed
    assert (pending.last, pending.ancestor) == (landed, landed.key)
