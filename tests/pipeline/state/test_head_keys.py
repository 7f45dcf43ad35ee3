"""The keys of the records that other versions of pion read, from bytes that pion really wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.state.claim import claim_run
from pipeline.state.head import (
    PREFER_FORMAT,
    CheckpointEntry,
    SkippedRows,
)
from pipeline.state.notes.rental_note import NOTE, RentalNote, write_rental_note
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState, heartbeat_path

OWNER = {
    "session",
    "pid",
    "pid_start",
    "pid_namespace",
    "boot_id",
    "host",
    "launch_id",
    "commit",
    "dirty",
    "versions",
    "started_at",
}
HEAD = {
    "": {
        "epoch",
        "owner",
        "job",
        "stages",
        "checkpoints",
        "restores",
        "claims",
        "committed_epoch",
        "spent",
        "forked",
        "skipped",
        "trash",
        "data",
        "write_ids",
        "format",
    },
    "owner": OWNER,
    "stages.*": {"digest", "at", "checkpoint", "result"},
    "checkpoints": {
        "stage",
        "step",
        "epoch",
        "digest",
        "key",
        "at",
        "bytes",
        "model_sha256",
        "ancestor",
        "metrics",
    },
    "claims": {"epoch", "at", "owner"},
    "claims.owner": OWNER,
    "spent": {"hours", "dollars", "until"},
    "skipped.*": {"first", "stop", "step", "epoch", "digest", "why", "at"},
    "trash": {"key", "not_before"},
}
OWNER_FILE = {"epoch", "owner", "at", "beat", "status"}
RENTAL = {"at", "host", "rented_from", "launch_id", "epoch", "over", "format"}

RULE = (
    "A machine keeps the pion that it was launched with, and that pion refuses a key it does not "
    "know: it would stop training. Put a new fact into its own object in the store. If it "
    "must be here, write it under a new `format` number, and only in runs that need it."
)


@pytest.fixture
def written(run: RunState) -> RunState:
    """Return a run whose HEAD has one of everything, with a heartbeat and a rental's note."""
    write_rental_note(run, RentalNote(0.0, "host", "here", "launch", 1), None)
    claim = claim_run(run, Owner.me(), price=0.5)
    claim.set_job("0123")
    claim.finish_stage("prepare", "digest", {"rows": 3})
    for step in (1, 2):
        key = f"checkpoints/pretrain/{step}-1"
        entry = CheckpointEntry("pretrain", step, 1, "digest", key, 0.0, 9, "sha")
        claim.commit(lambda head, entry=entry: head.with_checkpoint(entry))
    claim.commit(
        lambda head: head.with_skipped(
            "pretrain", SkippedRows(0, 4, 2, 1, "digest", "a loss of nan", 0.0)
        )
    )
    claim.set_restore("pretrain", 1)  # the later checkpoint becomes trash
    claim.heartbeat.beat()
    return run


def read(run: RunState, path: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(run.store.read(run.key(path)))
    return record


def test_no_key_is_added_to_head_or_taken_from_it(written: RunState) -> None:
    head = read(written, "HEAD.json")
    assert {path: set(at(head, path)) for path in HEAD} == HEAD, RULE


def test_no_key_is_added_to_an_owner_file_or_taken_from_it(written: RunState) -> None:
    beat = read(written, heartbeat_path(1))
    assert (set(beat), set(beat["owner"])) == (OWNER_FILE, OWNER), RULE


def test_no_key_is_added_to_the_note_of_a_rental_or_taken_from_it(written: RunState) -> None:
    assert set(read(written, NOTE)) == RENTAL, RULE


@pytest.mark.parametrize("change", [{"format": PREFER_FORMAT + 1}, {"colour": "red"}])
def test_an_owner_commits_nothing_on_a_head_from_a_newer_version(
    run: RunState, change: dict[str, Any]
) -> None:
    claim = claim_run(run, Owner.me())
    newer = json.dumps(read(run, "HEAD.json") | change).encode()
    version = run.store.read_versioned(run.key("HEAD.json"))[1]
    run.store.compare_and_swap(run.key("HEAD.json"), newer, version)
    with pytest.raises(BadInput, match=r"HEAD\.json"):
        claim.commit(lambda head: dataclasses.replace(head, job="0123"))
    assert run.store.read(run.key("HEAD.json")) == newer


def at(record: Any, path: str) -> Iterator[str]:
    """Return every key of the objects at a dotted path. Lists are entered, and `*` is any key."""
    if isinstance(record, list):
        for item in record:
            yield from at(item, path)
    elif not path:
        yield from record or ()
    elif record:
        key, _, rest = path.partition(".")
        for inner in record.values() if key == "*" else [record[key]]:
            yield from at(inner, rest)
