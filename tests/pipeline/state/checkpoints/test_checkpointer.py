"""Checkpoints: a restored save is exactly what was saved, or it is skipped with a reason."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pion.errors import BadInput, Fenced, PionError
from pion.train.side_copy import SideCopy
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries, PendingCommit
from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.checkpoints.restore import (
    FoundCheckpoint,
    check_entry,
    load_folder,
    newest_good,
)
from pipeline.state.checkpoints.retention import Keep
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from pipeline.state.checkpoints.uploader import Saved, SaveRequest, UploaderDied
from pipeline.state.claim import Claim, claim_run
from pipeline.state.head import Head
from pipeline.state.rows.metrics import MetricsLog, read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, Missing, Store, StoreError
from pipeline.state.workspace import Workspace
from tests.support.clock import FakeClock
from tests.support.hooked_store import Hooked, once
from tests.support.in_process_uploader import InProcessUploader
from tests.support.late_streams import LateStreams
from tests.support.states import an_entry, read, someone
from tests.support.waiting import PATIENCE_SECONDS, run_to_end

Tensors = dict[str, torch.Tensor]


def some_tensors(seed: int = 0) -> tuple[Tensors, Tensors]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 7, generator=generator)
    model = {
        "embed.weight": weight,
        "norm.weight": torch.randn(7, generator=generator, dtype=torch.bfloat16),
        "transposed": weight.t(),
    }
    optimizer = {
        "exp_avg.embed.weight": torch.randn(5, 7, generator=generator),
        "step": torch.tensor(3, dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 4),
        "bytes": torch.arange(3, dtype=torch.uint8),
    }
    return model, optimizer


made: list[Checkpointer] = []


def a_checkpointer(claim: Claim, keep: Keep | None = None, **options: Any) -> Checkpointer:
    series = CheckpointSeries("pretrain", "d1", {"config.json": b"{}"}, keep or Keep())
    made.append(Checkpointer(claim, series, **options))
    return made[-1]


@pytest.fixture(autouse=True)
def close_checkpointers() -> Iterator[None]:
    """Close the checkpointers that a test leaves open."""
    made.clear()
    yield
    for checkpointer in made:
        with contextlib.suppress(PionError):  # the run may be taken over, or its store broken
            checkpointer.close()
    made.clear()


def save(checkpointer: Checkpointer, step: int, seed: int | None = None) -> None:
    model, optimizer = some_tensors(step if seed is None else seed)
    assert checkpointer.save(model, optimizer, {"step": step, "next_row": step * 8})
    checkpointer.wait()


def checkpointer_in_this_process(claim: Claim, **options: Any) -> Checkpointer:
    return a_checkpointer(claim, uploader=InProcessUploader(claim.store), **options)


def newest(
    claim: Claim, digest: str = "d1", root: Path | None = None
) -> tuple[Any, Any, list[str]]:
    found = newest_good(Workspace(claim.store, "demo", root), read(claim.state), "pretrain", digest)
    loaded = load_folder(found.folder) if found.folder else None
    return found.entry, loaded, found.skipped


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


class Gate(FileStore):
    """A store in which writing a model waits until `open` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.open = threading.Event()

    def write(self, key: str, data: Any) -> None:
        if key.endswith("model.safetensors"):
            assert self.open.wait(60)
        super().write(key, data)


def fails_once(folder: Path, *, outage: bool) -> Hooked:
    """Return a store that fails the first write of an optimizer's file."""
    store = Hooked(folder)
    store.before = once(StoreError("write", "it", "the disk is full", outage=outage), OPTIMIZER)
    return store


class NoMapping(FileStore):
    """A store whose content must be downloaded, as from another machine."""

    def local_path(self, key: str) -> Path | None:
        return None


def test_what_is_saved_comes_back_exactly(claim: Claim) -> None:
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
    names = [found.key.rpartition("/")[2] for found in claim.store.list(f"demo/{entry.key}/")]
    assert names == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_snapshot_is_taken_before_save_returns(run: RunState, tmp_path: Path) -> None:
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


def test_a_save_that_finds_the_previous_one_writing_is_skipped(tmp_path: Path) -> None:
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


def test_saving_a_step_that_is_durable_already_writes_nothing(claim: Claim) -> None:
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    before = claim.store.read("demo/HEAD.json")
    save(checkpointer, 10)
    assert claim.store.read("demo/HEAD.json") == before


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_owner(run: RunState) -> None:
    hashes: set[str] = set()
    for _ in range(2):
        claim = claim_run(run, someone(), take_over=True)
        model, optimizer = some_tensors()
        shuffled = dict(reversed(model.items()))
        checkpointer = checkpointer_in_this_process(claim)
        checkpointer.save(shuffled if hashes else model, optimizer, {"step": 1})
        checkpointer.wait()
        hashes.add(checkpointer.last.model_sha256)
    assert len(hashes) == 1


def content(snapshot: Snapshot, name: str) -> memoryview:
    """Return the bytes of one of the two files, as the uploader has them."""
    return map_extents(snapshot.fd, snapshot.extents)[name]


def test_the_files_are_plain_safetensors(tmp_path: Path) -> None:
    model, optimizer = some_tensors()
    snapshot = Snapshot()
    snapshot.take(model, optimizer, {"step": 1})
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        (tmp_path / "file.safetensors").write_bytes(content(snapshot, name))
        assert_same(load_file(tmp_path / "file.safetensors"), tensors)


def test_a_snapshot_uses_its_memory_again_and_follows_a_change_of_shape() -> None:
    snapshot = Snapshot()
    model, optimizer = some_tensors()
    snapshot.take(model, optimizer, {})
    mapped = content(snapshot, MODEL)
    before = bytes(mapped)
    snapshot.take(*some_tensors(1), {})
    assert bytes(mapped) != before
    snapshot.take({**model, "more": torch.ones(64)}, optimizer, {})
    assert len(content(snapshot, MODEL)) > len(before) + 256


def test_a_snapshot_takes_nothing_from_dev_shm(claim: Claim) -> None:
    before = mapped_from_dev_shm()
    checkpointer = a_checkpointer(claim)
    save(checkpointer, 1)
    assert mapped_from_dev_shm() == before
    checkpointer.close()


def mapped_from_dev_shm() -> set[str]:
    """Return the files in /dev/shm that this process or a child has mapped."""
    pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return set(re.findall(r"/dev/shm/\S+", maps))


@pytest.mark.slow
@pytest.mark.parametrize("saves", [8, pytest.param(80, marks=pytest.mark.soak)])
def test_memory_stays_flat_over_many_saves(claim: Claim, saves: int) -> None:
    model = {"weight": torch.ones(1_000_000)}
    me = psutil.Process()
    others = me.children()  # servers of other tests
    checkpointer = a_checkpointer(claim)

    def memory() -> int:
        mine = [child for child in me.children() if child not in others]
        assert mine
        return sum(p.memory_full_info().uss for p in (me, *mine))

    found = []
    for step in range(1, saves + 1):
        assert checkpointer.save(model, {}, {"step": step})
        checkpointer.wait()
        if step in (saves // 4, saves * 5 // 8, saves):
            gc.collect()
            found.append(memory())
    # Threads of other tests may still load data once; a leak would show in both halves.
    begin, middle, end = found
    assert min(middle - begin, end - middle) < 8_000_000  # two saves' worth, of three or more
    assert checkpointer.stats.saved == saves
    checkpointer.close()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("model.safetensors", truncate, r"model.safetensors has \d+ bytes instead of \d+"),
        ("model.safetensors", flip_a_bit, "model.safetensors has been altered"),
        ("optimizer.safetensors", flip_a_bit, "optimizer.safetensors has been altered"),
        ("state.json", flip_a_bit, "state.json has been altered"),
        ("config.json", Path.unlink, "config.json is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", truncate, "manifest.json is damaged"),
        ("manifest.json", flip_a_bit, ""),  # which reason depends on the place
    ],
)
def test_a_damaged_newest_checkpoint_is_skipped_with_the_reason(
    claim: Claim, file: str, damage: Callable[[Path], None], why: str
) -> None:
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    save(checkpointer, 20)
    path = claim.store.local_path(f"demo/checkpoints/pretrain/20-1/{file}")
    assert path is not None
    if file == "manifest.json" and damage is truncate:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        damage(path)
    entry, loaded, skipped = newest(claim)
    assert entry.step == 10
    assert loaded.state["next_row"] == 80
    assert_same(loaded.model, some_tensors(10)[0])
    (note,) = skipped
    assert note.startswith("Skipped checkpoint checkpoints/pretrain/20-1: ")
    assert re.search(why, note)


def test_a_complete_checkpoint_that_is_not_the_listed_one_is_skipped(claim: Claim) -> None:
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


def test_a_check_that_asks_for_it_reads_unchanged_files_once(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_checkpoints_of_another_digest_or_stage_are_not_restored(claim: Claim) -> None:
    save(checkpointer_in_this_process(claim), 10)
    assert newest(claim, digest="d2") == (None, None, [])


def test_a_checkpoint_of_a_newer_format_is_an_error_and_not_skipped(claim: Claim) -> None:
    checkpointer = checkpointer_in_this_process(claim)
    save(checkpointer, 10)
    save(checkpointer, 20)
    key = "demo/checkpoints/pretrain/20-1/manifest.json"
    manifest = json.loads(claim.store.read(key))
    claim.store.write(key, json.dumps({**manifest, "format": 3}).encode())
    with pytest.raises(BadInput, match=r"20-1/manifest.json has format version 3"):
        newest(claim)


def test_loaded_tensors_outlive_their_files(claim: Claim) -> None:
    save(checkpointer_in_this_process(claim), 10)
    _, loaded, _ = newest(claim)
    for found in claim.store.list("demo/checkpoints/"):
        claim.store.delete(found.key)
    assert_same(loaded.model, some_tensors(10)[0])


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PionError, match="is not a complete checkpoint"):
        load_folder(tmp_path)


def test_a_fenced_checkpointer_lists_nothing_and_says_who_took_over(run: RunState) -> None:
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

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.begun, self.closed = threading.Event(), threading.Event()

    def save(self, request: SaveRequest) -> Saved:
        self.begun.set()
        assert self.closed.wait(PATIENCE_SECONDS), "the uploader is not closed"
        raise UploaderDied("save", request.key, "exit code -9")

    def close(self) -> None:
        self.closed.set()


def test_nobody_waits_for_an_upload_of_a_run_that_another_process_owns(run: RunState) -> None:
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


def test_a_failed_write_is_raised_by_the_next_save_and_the_one_after_works(tmp_path: Path) -> None:
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


def test_files_of_a_failed_save_are_deleted_an_hour_after_the_next_commit(
    tmp_path: Path, time: FakeClock
) -> None:
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


def test_a_result_is_noted_in_its_checkpoint_without_waiting(tmp_path: Path) -> None:
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


def test_a_store_that_corrupts_files_is_detected_before_the_commit(tmp_path: Path) -> None:
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


def test_metrics_are_durable_when_the_checkpoint_that_covers_them_is(claim: Claim) -> None:
    metrics = MetricsLog(claim.store, "demo", "pretrain", claim.epoch)
    checkpointer = checkpointer_in_this_process(claim, metrics=metrics)
    metrics.append({"step": 10, "loss": 3.0})
    save(checkpointer, 10)
    rows = read_metrics(claim.store, "demo", claim.head, "pretrain")
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 3.0)]


def test_state_that_is_not_json_is_refused_at_the_save(claim: Claim) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpointer_in_this_process(claim).save(*some_tensors(), {"step": 1, "rng": torch.ones(1)})


def test_reading_head_and_status_needs_no_torch() -> None:
    code = (
        "import sys, pipeline.state.checkpoints.checkpointer, pipeline.state.rows.metrics;"
        "import pipeline.state.stores;"
        "print([m for m in ('torch', 'numpy', 'ray', 'pydantic') if m in sys.modules])"
    )
    assert run_to_end([sys.executable, "-c", code], check=True).stdout == "[]\n"


def test_an_entry_knows_its_size(claim: Claim) -> None:
    save(checkpointer_in_this_process(claim), 10)
    (entry,) = claim.head.checkpoints
    files = claim.store.list(f"demo/{entry.key}/")
    manifest = sum(found.size for found in files if found.key.endswith("/manifest.json"))
    assert entry.bytes == sum(found.size for found in files) - manifest
    assert dataclasses.asdict(entry)["model_sha256"] == entry.model_sha256


# ---------------------------------------------------------------- between begin and commit


def upload(pending: PendingCommit, step: int) -> None:
    entry = an_entry(step)
    pending.begin(entry.key)
    pending.uploaded(entry)


def test_it_begins_with_the_checkpoint_that_training_resumed_from() -> None:
    entry = an_entry(10, ancestor="checkpoints/pretrain/5-1")
    listed = PendingCommit(FoundCheckpoint(entry, Path("x"), []))
    assert (listed.last, listed.ancestor, listed.newest_key) == (entry, entry.key, None)
    copy = PendingCommit(FoundCheckpoint(entry, Path("x"), [], listed=False))
    assert (copy.last, copy.ancestor, copy.newest_key) == (None, entry.ancestor, entry.key)
    fresh = PendingCommit(FoundCheckpoint(None, None, []))
    assert (fresh.last, fresh.ancestor, fresh.newest_key) == (None, None, None)


def test_an_acknowledged_commit_leaves_no_doubt() -> None:
    pending, entry = PendingCommit(), an_entry(10)
    upload(pending, 10)
    assert pending.in_doubt
    assert pending.uploaded_as(entry.key) == entry
    pending.acknowledged(entry)
    assert not pending.in_doubt
    assert pending.uploaded_as(entry.key) is None
    assert (pending.last, pending.ancestor) == (entry, entry.key)
    assert pending.given_up("checkpoints/pretrain/20-1") == []


def test_a_commit_that_landed_unacknowledged_is_the_ancestor_of_the_next_save() -> None:
    pending = PendingCommit()
    upload(pending, 10)
    assert pending.look_for_landed(Head()) is None
    assert pending.ancestor is None
    landed = an_entry(10)
    assert pending.look_for_landed(Head(checkpoints=(landed, an_entry(5, epoch=0)))) == landed
    assert (pending.last, pending.ancestor) == (landed, landed.key)


def test_the_next_save_gives_up_failed_saves() -> None:
    pending = PendingCommit()
    pending.begin(an_entry(10).key)  # and the upload fails
    upload(pending, 20)
    assert pending.given_up(an_entry(20).key) == [an_entry(10).key]
    assert pending.newest_key == an_entry(20).key


# ---------------------------------------------------------------- a copy next to the following step


class SlowCard(LateStreams):
    """A card that copies only when its update waits for the copies, or fails with `error` first."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__()
        self._copied, self._error = threading.Event(), error

    def wait_event(self, event: LateStreams) -> None:
        super().wait_event(event)
        self._copied.set()

    def synchronize(self) -> None:
        if self._error is not None:
            raise RuntimeError(self._error)
        assert self._copied.wait(60)


def test_a_save_next_to_a_step_is_written_after_its_copies(claim: Claim) -> None:
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
    assert stats.copy_seconds is not None
    assert stats.copy_seconds > stats.stall_seconds


def test_a_card_that_fails_during_a_copy_leaves_the_last_checkpoint(claim: Claim) -> None:
    checkpointer = checkpointer_in_this_process(claim)
    assert checkpointer.save(*some_tensors(), {"step": 10})
    checkpointer.wait()
    side_copy = SideCopy(SlowCard("CUDA error: unspecified launch failure"))
    assert checkpointer.save(*some_tensors(), {"step": 20}, side_copy)
    with pytest.raises(RuntimeError, match="launch failure"):
        checkpointer.wait()
    assert newest(claim)[0].step == 10
    assert list(claim.store.list("demo/checkpoints/pretrain/20-1/")) == []


def test_a_snapshot_is_freed_only_after_the_copies_into_it() -> None:
    streams, snapshot = LateStreams(), Snapshot()
    snapshot.take(*some_tensors(), {}, SideCopy(streams))
    snapshot.close()
    assert streams.order[-1] == "the host waits for the copies"


def test_a_snapshot_of_other_shapes_waits_for_the_copies_into_the_old_memory() -> None:
    streams, snapshot = LateStreams(), Snapshot()
    snapshot.take({"weight": torch.ones(8)}, {}, {}, SideCopy(streams))
    snapshot.take({"weight": torch.ones(9)}, {}, {})
    assert streams.order[-1] == "the host waits for the copies"
