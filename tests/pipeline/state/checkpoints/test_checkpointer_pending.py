"""The state of a save after each event between its begin and its commit."""

from pathlib import Path

from pipeline.state.checkpoints.checkpointer import PendingCommit
from pipeline.state.checkpoints.restore import FoundCheckpoint
from pipeline.state.head import Head
from tests.support.states import an_entry


def upload(pending, step):
    entry = an_entry(step)
    pending.begin(entry.key)
    pending.uploaded(entry)


def test_it_begins_with_the_checkpoint_that_training_resumed_from():
    entry = an_entry(10, ancestor="checkpoints/pretrain/5-1")
    listed = PendingCommit(FoundCheckpoint(entry, Path("x"), []))
    assert (listed.last, listed.ancestor, listed.newest_key) == (entry, entry.key, None)
    copy = PendingCommit(FoundCheckpoint(entry, Path("x"), [], listed=False))
    assert (copy.last, copy.ancestor, copy.newest_key) == (None, entry.ancestor, entry.key)
    fresh = PendingCommit(FoundCheckpoint(None, None, []))
    assert (fresh.last, fresh.ancestor, fresh.newest_key) == (None, None, None)


def test_an_acknowledged_commit_leaves_no_doubt():
    pending, entry = PendingCommit(), an_entry(10)
    upload(pending, 10)
    assert pending.in_doubt
    assert pending.uploaded_as(entry.key) == entry
    pending.acknowledged(entry)
    assert not pending.in_doubt
    assert pending.uploaded_as(entry.key) is None
    assert (pending.last, pending.ancestor) == (entry, entry.key)
    assert pending.given_up("checkpoints/pretrain/20-1") == []


def test_a_commit_that_landed_unacknowledged_is_the_ancestor_of_the_next_save():
    pending = PendingCommit()
    upload(pending, 10)
    assert pending.look_for_landed(Head()) is None
    assert pending.ancestor is None
    landed = an_entry(10)
    assert pending.look_for_landed(Head(checkpoints=(landed, an_entry(5, epoch=0)))) == landed
    assert (pending.last, pending.ancestor) == (landed, landed.key)


def test_the_next_save_gives_up_failed_saves():
    pending = PendingCommit()
    pending.begin(an_entry(10).key)  # and the upload fails
    upload(pending, 20)
    assert pending.given_up(an_entry(20).key) == [an_entry(10).key]
    assert pending.newest_key == an_entry(20).key
