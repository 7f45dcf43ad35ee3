"""What is remembered of traces: a second process, and other code, do not trace in vain."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.files import private_cache_folder
from pion.model import decoder
from pion.model.decoder import Decoder
from pion.train.memory_trace import remembered
from pion.train.memory_trace.remembered import remembered_peaks
from pion.train.memory_trace.stand_ins import replaced, stand_ins
from pion.train.workload import Workload

TINY = ModelConfig(
    d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=512, seq_len=64
)


def traced(config=TINY):
    return Workload(config, config.seq_len, "float32", "adamw", "cuda", False).traced()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(remembered, "_folder", lambda: private_cache_folder("step-memory"))
    remembered.forget()
    yield tmp_path / "pion" / "step-memory"
    monkeypatch.undo()
    remembered.forget()


def nothing_may_be_traced(monkeypatch):
    def fail(what):
        raise AssertionError(f"{what} is traced again")

    remembered.forget()
    monkeypatch.setattr(remembered, "_trace", fail)


def test_what_was_traced_is_read_from_the_file(monkeypatch):
    first = remembered_peaks(traced(), 2, recompute=False)
    nothing_may_be_traced(monkeypatch)
    assert remembered_peaks(traced(), 2, recompute=False) == first
    with pytest.raises(AssertionError, match="traced again"):
        remembered_peaks(traced(), 2, recompute=True)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"2 keep": ["x", 1, 2]}',
        *(pytest.param(b, marks=pytest.mark.soak) for b in (b"", b"[1]", b'{"2 keep": [1]}')),
    ],
)
def test_a_damaged_file_costs_only_the_time_of_a_trace(folder, content):
    remembered_peaks(traced(), 2, recompute=True)  # a process's first trace counts 9 kB more
    first = remembered_peaks(traced(), 2, recompute=False)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    remembered.forget()
    assert remembered_peaks(traced(), 2, recompute=False) == first


def test_a_folder_that_cant_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(remembered, "_folder", lambda: tmp_path / "file" / "folder")
    assert remembered_peaks(traced(), 2, recompute=False).activations > 0


def test_other_code_and_other_models_have_files_of_their_own(folder, monkeypatch):
    remembered_peaks(traced(), 2, recompute=False)
    remembered_peaks(traced(ModelConfig.of(TINY.to_dict() | {"d_ff": 96})), 2, recompute=False)
    assert len(list(folder.iterdir())) == 2
    remembered.forget()
    monkeypatch.setattr(remembered, "_code", lambda: "changed")
    remembered_peaks(traced(), 2, recompute=False)
    assert len(list(folder.iterdir())) == 3


def trainers_modules(file):
    """Return the modules of pion/train that a file imports, but for those of its types only."""
    every = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    blocks = [node for node in every if isinstance(node, ast.If)]
    typing = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {inner for block in typing for inner in ast.walk(block)}
    return {
        f"{node.module.removeprefix('pion.').replace('.', '/')}.py"
        for node in every
        if isinstance(node, ast.ImportFrom) and node not in for_types
        if node.module and node.module.startswith("pion.train.")
    }


def test_each_module_of_the_trainer_that_a_trace_reads_belongs_to_the_code():
    package = Path(remembered.__file__).parents[2]
    sources = [package / name for name in remembered.SOURCES]
    files = {file for source in sources for file in (source, *source.rglob("*.py"))}
    read = set().union(*(trainers_modules(file) for file in files if file.is_file()))
    assert {"train/shard_rules.py", "train/preference_losses.py"} <= read
    assert all((package / name).is_file() for name in read)
    assert {name for name in read if not name.startswith(remembered.SOURCES)} == set()


def test_threads_that_want_traces_at_the_same_time_leave_the_model_as_it_was():
    before = vars(decoder).copy()
    configs = [ModelConfig.of(TINY.to_dict() | {"d_ff": 96 + 32 * more}) for more in range(3)]
    ask = partial(remembered_peaks, rows=2, recompute=False)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, [traced(config) for config in configs * 2]))
    assert vars(decoder) == before
    remembered.forget()
    assert found == [ask(traced(config)) for config in configs] * 2


def test_a_model_of_another_thread_computes_as_usual_during_a_trace():
    def fail(*arguments):
        raise AssertionError("a stand-in was called by another thread")

    def loss():
        torch.manual_seed(0)
        tokens = torch.zeros(1, 8, dtype=torch.int64)
        losses = Decoder(TINY).losses(tokens, tokens)
        losses.ce.backward()
        return losses.ce.item()

    usual = loss()
    with (
        stand_ins("cuda", (8, 0)),
        replaced(decoder, "_run_block", fail),
        ThreadPoolExecutor(1) as pool,
    ):
        assert pool.submit(loss).result() == usual
