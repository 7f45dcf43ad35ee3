"""A checkpoint that is not what was saved is skipped with a reason."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from pion.errors import BadInput, PionError
from pipeline.state.checkpoints.layout import MODEL
from pipeline.state.checkpoints.restore import check_entry, load_folder
from pipeline.state.workspace import Workspace
from tests.pipeline.state.checkpoints.conftest import (
    assert_same,
    checkpointer_in_this_process,
    flip_a_bit,
    newest,
    save,
    some_tensors,
)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("model.safetensors", cut_off, r"model.safetensors has \d+ bytes instead of \d+"),
        ("model.safetensors", flip_a_bit, "model.safetensors has been altered"),
        ("optimizer.safetensors", flip_a_bit, "optimizer.safetensors has been altered"),
        ("state.json", flip_a_bit, "state.json has been altered"),
        ("config.json", Path.unlink, "config.json is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", cut_off, "manifest.json is damaged"),
        ("manifest.json", flip_a_bit, ""),  # which reason depends on the place
    ],
)
def test_a_damaged_newest_checkpoint_is_skipped_with_the_reason(claim, file, damage, why):
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    save(checkpointer, 20)
    damage(claim.store.local_path(f"demo/checkpoints/pretrain/20-1/{file}"))
    entry, loaded, skipped = newest(claim)
    assert entry.step == 10
    assert loaded.state["next_row"] == 80
    assert_same(loaded.model, some_tensors(10)[0])
    (note,) = skipped
    assert note.startswith("Skipped checkpoint checkpoints/pretrain/20-1: ")
    assert re.search(why, note)


def test_a_complete_checkpoint_that_is_not_the_listed_one_is_skipped(claim):
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    save(checkpointer, 20)
    folders = claim.store.local_path("demo/checkpoints/pretrain")
    (folders / "20-1").rename(folders / "aside")
    (folders / "10-1").rename(folders / "20-1")
    head = claim.head
    assert check_entry(Workspace(claim.store, "demo"), head.checkpoints[0]) == (
        "its weights differ from those that HEAD lists"
    )


def test_a_check_that_asks_for_it_reads_unchanged_files_once(claim, monkeypatch):
    save(checkpointer_in_this_process(claim), 10)
    (entry,) = claim.head.checkpoints
    workspace = Workspace(claim.store, "demo")
    assert check_entry(workspace, entry, once=True) is None
    path = workspace.folder(entry.key) / MODEL
    with monkeypatch.context() as patch:
        patch.delattr(hashlib, "file_digest")
        assert check_entry(workspace, entry, once=True) is None
    then = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, ns=(then, then))
    assert "altered" in str(check_entry(workspace, entry, once=True))
    assert "altered" in str(check_entry(workspace, entry))


def test_checkpoints_of_another_digest_or_stage_are_not_restored(claim):
    save(checkpointer_in_this_process(claim), 10)
    assert newest(claim, digest="d2") == (None, None, [])


def test_a_checkpoint_of_a_newer_format_is_an_error_and_not_skipped(claim):
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    save(checkpointer, 20)
    key = "demo/checkpoints/pretrain/20-1/manifest.json"
    manifest = json.loads(claim.store.read(key))
    claim.store.write(key, json.dumps({**manifest, "format": 3}).encode())
    with pytest.raises(BadInput, match=r"20-1/manifest.json has format version 3"):
        newest(claim)


def test_loaded_tensors_outlive_their_files(claim):
    save(checkpointer_in_this_process(claim), 10)
    _, loaded, _ = newest(claim)
    for found in claim.store.list("demo/checkpoints/"):
        claim.store.delete(found.key)
    assert_same(loaded.model, some_tensors(10)[0])


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(PionError, match="is not a complete checkpoint"):
        load_folder(tmp_path)
