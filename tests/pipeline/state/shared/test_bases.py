"""Models to start from are in a store once, whole or not at all, and a run keeps its own."""

import dataclasses
import hashlib

import pytest

from pion.errors import BadInput, PionError
from pipeline.job.model_section import Base
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import (
    BASES,
    bring_base,
    copy_bases,
    hash_of,
    keep_base,
    read_pin,
    write_pin,
)
from pipeline.state.stores import FileStore, Missing, open_store
from pipeline.state.workspace import FILES, manifest_of

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"ids"}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


def files():
    return {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in CONTENT.items()}


def base(**changes):
    found = Base("some/model", hash_of(files()), "0" * 64, {"d_model": 8}, "c" * 40)
    return dataclasses.replace(found, **changes)


def keep(store, source):
    keep_base(store, base().hash, files(), source.joinpath)


def test_a_kept_model_no_longer_needs_its_source(store, source):
    keep(store, source)
    for path in source.iterdir():
        path.write_bytes(b"changed in place")
    folder = bring_base(store, base().hash)
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    keep(store, source)  # it is there: nothing is read again


def test_a_model_counts_once_its_list_of_files_is_there(store, source):
    def ends_at_the_weights(name):
        if name == "model.safetensors":
            raise KeyboardInterrupt
        return source / name

    with pytest.raises(KeyboardInterrupt):
        keep_base(store, base().hash, files(), ends_at_the_weights)
    with pytest.raises(PionError, match="it is missing"):
        bring_base(store, base().hash)
    asked = []

    def bring(name):
        asked.append(name)
        return source / name

    keep_base(store, base().hash, files(), bring)
    assert "config.json" not in asked  # an earlier attempt has copied it
    assert bring_base(store, base().hash)


@pytest.mark.parametrize("change", ["other", "fewer"])
def test_a_list_of_other_files_than_the_hash_names_is_refused(store, source, change):
    keep(store, source)
    key = f"{BASES}/{base().hash}"
    weights = b"other weights"
    listed = files() | {"model.safetensors": (len(weights), hashlib.sha256(weights).hexdigest())}
    store.write(f"{key}/model.safetensors", weights)
    if change == "fewer":
        del listed["model.safetensors"]
    store.write(f"{key}/{FILES}", manifest_of(listed))
    with pytest.raises(PionError, match=r"files.json is damaged: it lists other files"):
        bring_base(store, base().hash)


def test_a_file_that_changes_meanwhile_is_not_kept(store, source):
    (source / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(BadInput, match=r"model.safetensors has been altered"):
        keep(store, source)
    with pytest.raises(Missing):
        store.read(f"{BASES}/{base().hash}/{FILES}")


def test_small_files_come_without_the_weights(s3, s3_store, source, tmp_path, monkeypatch):
    store = open_store(s3_store)
    keep(store, source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-machine"))
    folder = bring_base(store, base().hash, weights=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    assert (bring_base(store, base().hash) / "model.safetensors").read_bytes() == b"weights"


def test_a_run_keeps_what_a_name_meant_until_it_is_replaced(run):
    assert read_pin(run, "some/model") is None
    write_pin(run, base())
    assert read_pin(run, "some/model") == base()
    write_pin(run, base())
    other = base(hash="1" * 64)
    with pytest.raises(BadInput, match="another start of run demo has just begun with"):
        write_pin(run, other)
    write_pin(run, other, replace=True)
    assert read_pin(run, "some/model") == other
    assert read_pin(run, "another/model") is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1, "source": 3}', b"[]"])
def test_a_damaged_pin_is_named(run, content):
    write_pin(run, base())
    (pin,) = run.store.list(run.key("bases/"))
    run.store.write(pin.key, content)
    with pytest.raises(Damaged, match=r"demo/bases/.*json is damaged"):
        read_pin(run, "some/model")


def test_a_fork_in_another_store_has_its_own_copy(run, source, tmp_path):
    keep(run.store, source)
    write_pin(run, base())
    fork = RunState(FileStore(tmp_path / "forks"), "copy")
    copy_bases(run, fork)
    assert read_pin(fork, "some/model") == base()
    assert (bring_base(fork.store, base().hash) / "model.safetensors").read_bytes() == b"weights"
