"""Owners and checkpoints for tests that only need them as entries of a run's state."""

import dataclasses
import uuid

from pipeline.state.head import CheckpointEntry
from pipeline.state.owner import Owner


def someone(**changes):
    """Return an owner on another machine. Nobody here can see whether it runs."""
    elsewhere = {
        "session": uuid.uuid4().hex,
        "host": "elsewhere",
        "boot_id": "another-boot",
        "launch_id": None,
    }
    return dataclasses.replace(Owner.me(), **{**elsewhere, **changes})


# The owners before and after a hop.
OLD = someone(host="pod-old", launch_id="launch-old")
NEW = someone(host="pod-new", launch_id="launch-new")


def read(run):
    head = run.read()
    assert head is not None
    return head


def an_entry(step, epoch=1, stage="pretrain", **changes):
    entry = CheckpointEntry(
        stage=stage,
        step=step,
        epoch=epoch,
        digest="d",
        key=f"checkpoints/{stage}/{step}-{epoch}",
        at=1.0,
        bytes=10,
        model_sha256="0" * 64,
    )
    return dataclasses.replace(entry, **changes)


def list_checkpoint(claim, entry):
    """List `entry` in HEAD, as if it had been saved."""
    claim.commit(lambda head: head.with_checkpoint(entry))
