"""A tiny decoder, and tiny data sets on disk for it."""

from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pion.data.order import RowOrder
from pion.data.row_flags import LEARNED, STARTS
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import RowStream
from pion.model import decoder
from pion.model.decoder import Decoder
from pion.train import memory, smaller_plan
from pion.train.memory_trace.live_bytes import Peaks
from tests.support.tiny_config import tiny_config
from tests.support.whole_state import train

CONFIG = tiny_config()


def tiny_decoder(seed=0):
    torch.manual_seed(seed)
    return Decoder(CONFIG)


def write_rows(folder, *, rows, conversations, config=CONFIG):
    """Return a data set of ids that follow a noisy rule, so that there is much to learn.

    In a conversation, between 1 and all of its tokens are learned, so ranks get uneven counts.
    """
    random = np.random.default_rng(0)
    size, seq_len = config.vocab_size, config.seq_len
    ids = np.cumsum(random.integers(1, 4, (rows, seq_len)), axis=1) % size
    flags = None
    if conversations:
        flags = np.zeros((rows, seq_len), dtype=np.uint8)
        for row in range(rows):
            flags[row, -random.integers(1, seq_len) :] |= LEARNED
            flags[row, 0] |= STARTS
            flags[row, random.integers(1, seq_len)] |= STARTS
    writer = ShardWriter(
        folder, seq_len=seq_len, vocab_size=size, rows_per_shard=7, conversations=conversations
    )
    writer.append_rows(ids, flags)
    kind = "conversations" if conversations else "tokens"
    return Manifest(kind=kind, seq_len=seq_len, vocab_size=size, shards=writer.finish())


def open_stream(folder, *, rows=40, conversations=False, config=CONFIG):
    """Return the rows in a folder, which are written if it is new."""
    file = folder / "manifest.json"
    if not file.exists():
        write_rows(folder, rows=rows, conversations=conversations, config=config).write(file)
    manifest = Manifest.read(file)
    order = RowOrder(manifest.shard_rows, manifest.fingerprint, seed=1, window=2)
    return RowStream([(Rows(manifest, lambda shard: folder / shard.name), order)])


def run(trainer, steps):
    """Train so many steps; return the metrics of each."""
    train(trainer, steps)
    return trainer.drain_metrics()


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_search_for_garbage(monkeypatch):
    """After each abandoned step, this would look at all that the tests have imported."""
    monkeypatch.setattr(smaller_plan, "gc", SimpleNamespace(collect=lambda: 0))


def compile_with(monkeypatch, backend):
    """Let torch.compile compile blocks by this backend, from the start."""
    compiled = partial(torch.compile, backend=backend, dynamic=False, fullgraph=True)
    monkeypatch.setattr(decoder, "compiled", lru_cache(compiled))
    torch._dynamo.reset()


@pytest.fixture
def compilations(monkeypatch):
    """The graphs that torch.compile makes of blocks, which compute without a C++ compiler."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_with(monkeypatch, count)
    yield graphs
    torch._dynamo.reset()


@pytest.fixture
def untraced(monkeypatch):
    """Let passes need nothing. Tracing them takes seconds, and says nothing of the state."""
    monkeypatch.setattr(memory, "remembered_peaks", lambda *_, **__: Peaks(0, 0, 0))


@pytest.fixture
def text(tmp_path_factory):
    return open_stream(tmp_path_factory.getbasetemp() / "text")


@pytest.fixture
def long_text(tmp_path_factory):
    """Return enough rows that no row comes twice."""
    return open_stream(tmp_path_factory.getbasetemp() / "long", rows=400)
