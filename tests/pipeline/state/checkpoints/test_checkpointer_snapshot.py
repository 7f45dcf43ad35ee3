"""The memory of a save: plain safetensors, used again, and no more after many saves."""

import gc
import os
import re
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.state.checkpoints.layout import MODEL, OPTIMIZER
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from tests.pipeline.state.checkpoints.conftest import (
    a_checkpointer,
    assert_same,
    save,
    some_tensors,
)


def content(snapshot, name):
    """Return the bytes of one of the two files, as the uploader has them."""
    return map_extents(snapshot.fd, snapshot.extents)[name]


def test_the_files_are_plain_safetensors(tmp_path):
    model, optimizer = some_tensors()
    snapshot = Snapshot()
    snapshot.take(model, optimizer, {"step": 1})
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        (tmp_path / "file.safetensors").write_bytes(content(snapshot, name))
        assert_same(load_file(tmp_path / "file.safetensors"), tensors)


def test_a_snapshot_uses_its_memory_again_and_follows_a_change_of_shape():
    snapshot = Snapshot()
    model, optimizer = some_tensors()
    snapshot.take(model, optimizer, {})
    mapped = content(snapshot, MODEL)
    before = bytes(mapped)
    snapshot.take(*some_tensors(1), {})
    assert bytes(mapped) != before
    snapshot.take({**model, "more": torch.ones(64)}, optimizer, {})
    assert len(content(snapshot, MODEL)) > len(before) + 256


def test_a_snapshot_takes_nothing_from_dev_shm(claim):
    before = mapped_from_dev_shm()
    checkpointer = a_checkpointer(claim)
    save(checkpointer, 1)
    assert mapped_from_dev_shm() == before
    checkpointer.close()


def mapped_from_dev_shm():
    """Return the files in /dev/shm that this process or a child has mapped."""
    pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return set(re.findall(r"/dev/shm/\S+", maps))


@pytest.mark.soak
def test_memory_stays_flat_over_many_saves(claim):
    saves = 80
    model = {"weight": torch.ones(1_000_000)}
    me = psutil.Process()
    others = me.children()  # servers of other tests
    checkpointer = a_checkpointer(claim)

    def memory():
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
