"""Tensors, and checkpointers that save them."""

import contextlib

import pytest
import torch

from pion.errors import PionError
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.checkpoints.restore import load_folder, newest_good
from pipeline.state.checkpoints.retention import Keep
from pipeline.state.workspace import Workspace
from tests.support.in_process_uploader import InProcessUploader
from tests.support.states import read

Tensors = dict[str, torch.Tensor]


def some_tensors(seed=0):
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


made = []


def a_checkpointer(claim, keep=None, **options):
    series = CheckpointSeries(
        "pretrain", "d1", lambda state: {"config.json": b"{}"}, keep or Keep()
    )
    made.append(Checkpointer(claim, series, **options))
    return made[-1]


@pytest.fixture(autouse=True)
def close_checkpointers():
    """Close the checkpointers that a test leaves open."""
    made.clear()
    yield
    for checkpointer in made:
        with contextlib.suppress(PionError):  # the run may be taken over, or its store broken
            checkpointer.close()
    made.clear()


def save(checkpointer, step, seed=None):
    model, optimizer = some_tensors(step if seed is None else seed)
    assert checkpointer.save(model, optimizer, {"step": step, "next_row": step * 8})
    checkpointer.wait()


def checkpointer_in_this_process(claim, **options):
    return a_checkpointer(claim, uploader=InProcessUploader(claim.store), **options)


def newest(claim, digest="d1", root=None):
    found = newest_good(Workspace(claim.store, "demo", root), read(claim.state), "pretrain", digest)
    loaded = load_folder(found.folder) if found.folder else None
    return found.entry, loaded, found.skipped


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
