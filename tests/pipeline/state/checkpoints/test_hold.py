"""Replaced checkpoints on the disk that a run trains on are deleted early, unless they are held."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pion.errors import BadInput
from pipeline.models.bring import bring_model
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.hold import STAYS, deletes_early, hold, unless_held
from pipeline.state.checkpoints.retention import Keep, forget, sweep
from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.in_process_uploader import InProcessUploader
from tests.support.states import an_entry, list_checkpoint, read, someone

HOUR = 3600.0


def mount(monkeypatch, kinds):
    """Let these folders be mounted, each with its file system."""
    found = [SimpleNamespace(mountpoint=str(path), fstype=kind) for path, kind in kinds.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)


@pytest.fixture(autouse=True)
def own_disk(monkeypatch):
    mount(monkeypatch, {Path("/"): "ext4"})


class Counting(FileStore):
    """A folder that knows the most checkpoints that it had at once."""

    most = 0

    def write(self, key, data):
        super().write(key, data)
        self.most = max(self.most, len(steps(self)))


def steps(store):
    """Return the steps whose weights are in the folder."""
    found = store.folder.glob("demo/checkpoints/pretrain/*/model.safetensors")
    return sorted(int(path.parent.name.partition("-")[0]) for path in found)


def saved(claim, *wanted):
    """Commit a checkpoint at each of these steps; the newest two stay listed."""
    for step in wanted:
        entry = an_entry(step)
        for name in ("model.safetensors", "manifest.json"):
            claim.store.write(claim.state.key(f"{entry.key}/{name}"), b"x")
        list_checkpoint(claim, entry)
        claim.commit(lambda head: forget(head, Keep(), claim.state.clock.now()))


@pytest.mark.parametrize("last", [2, 5])
def test_a_folder_has_at_most_the_kept_checkpoints_and_two_at_any_time(last, tmp_path):
    import torch

    store = Counting(tmp_path)
    claim = claim_run(RunState(store, "demo"), someone())
    series = CheckpointSeries("pretrain", "d1", lambda state: {}, Keep(last=last))
    checkpointer = Checkpointer(claim, series, uploader=InProcessUploader(store))
    for step in range(1, 13):
        assert checkpointer.save({"w": torch.ones(2)}, {}, {"step": step})
        checkpointer.wait()
    checkpointer.close()
    assert steps(store) == list(range(13 - last - STAYS, 13))
    assert store.most == last + STAYS


def test_a_checkpoint_that_a_reader_holds_stays_until_the_reader_is_killed(claim, store):
    saved(claim, 1, 2)
    code = (
        "import sys; from pipeline.state.checkpoints.hold import hold; "
        "from pipeline.state.stores import FileStore; "
        "hold(FileStore(sys.argv[1]), 'demo/checkpoints/pretrain/1-1'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"held\n"
        saved(claim, 3, 4, 5)
        sweep(claim)
        assert steps(store) == [1, 3, 4, 5]
        reader.kill()
    sweep(claim)
    assert steps(store) == [3, 4, 5]


def test_a_reader_that_holds_a_checkpoint_for_more_than_its_hour_holds_it_no_longer(
    claim, store, time
):
    saved(claim, 1)
    hold(store, "demo/checkpoints/pretrain/1-1")
    saved(claim, 2, 3, 4)
    sweep(claim)
    assert steps(store) == [1, 2, 3, 4]
    time.time += HOUR
    sweep(claim)
    assert steps(store) == [3, 4]


def leave_free(monkeypatch, free):
    """Let every disk have so many bytes free. None: the file system does not say."""
    monkeypatch.setattr("pipeline.state.checkpoints.hold.free_bytes", lambda folder: free)


def test_without_room_for_the_next_save_the_checkpoint_replaced_last_is_deleted_too(
    claim, store, monkeypatch
):
    saved(claim, 1, 2, 3)
    needed = claim.head.checkpoints[0].bytes
    assert needed > 0
    for free in (needed, None):
        leave_free(monkeypatch, free)
        assert sweep(claim) == []
    leave_free(monkeypatch, needed - 1)
    hold(store, "demo/checkpoints/pretrain/1-1")
    assert sweep(claim) == []
    saved(claim, 4)
    assert sweep(claim) == ["checkpoints/pretrain/2-1"]
    assert steps(store) == [1, 3, 4]


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "9p", "cifs", "new"])
def test_on_a_disk_that_other_machines_read_all_stay_for_an_hour_also_without_room(
    kind, claim, store, monkeypatch
):
    mount(monkeypatch, {Path("/"): "ext4", store.folder: kind})
    saved(claim, 1, 2, 3, 4, 5)
    assert sweep(claim) == []
    leave_free(monkeypatch, 0)
    assert sweep(claim) == []
    assert steps(store) == [1, 2, 3, 4, 5]


def test_the_disk_of_a_link_is_that_of_its_target(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "far")
    mount(monkeypatch, {Path("/"): "ext4", tmp_path / "far": "nfs"})
    assert not deletes_early(FileStore(tmp_path / "here"), "demo")
    assert deletes_early(FileStore(tmp_path), "demo")


def test_what_is_being_deleted_can_not_be_held(claim, store):
    saved(claim, 1)
    key = "demo/checkpoints/pretrain/1-1"
    with unless_held(store, key) as free:
        assert free
        hold(store, key)
    with unless_held(store, key) as free:
        assert free
    hold(store, key)
    with unless_held(store, key) as free:
        assert not free


def test_a_checkpoint_that_was_replaced_after_head_was_read_is_not_called_damaged(claim, run):
    saved(claim, 1)
    before = read(run)
    saved(claim, 2, 3, 4)
    sweep(claim)
    with pytest.raises(BadInput, match="has replaced its checkpoint checkpoints/pretrain/1-1 by a"):
        bring_model(run, before, "checkpoints/pretrain/1-1")


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(tmp_path):
    store = FileStore(tmp_path)
    (tmp_path / "demo").mkdir()
    os.mkfifo(tmp_path / "demo/manifest.json")
    hold(store, "demo")
    with unless_held(store, "demo") as free:
        assert free
