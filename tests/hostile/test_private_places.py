"""What holds copies, scratch and locks is private whatever the umask. Stores follow the umask."""

import importlib.util
import os
import stat
from pathlib import Path

import pytest

from pion.errors import BadInput
from pion.files import cache_folder
from pipeline.data.shard_cache import ShardCache, default_folder
from pipeline.machine.folders import use_private_compile_cache
from pipeline.prove.attempt import Place
from pipeline.rent.managed.request import rental_lock
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace, scratch_workspace
from tests.support.light_run import light_run


class Remote(FileStore):
    """A folder that Pion can't map into memory, so that this machine needs a copy."""

    def local_path(self, key):
        return None


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache that an older version made, and that everyone can read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("runs", "shards"):
        folder = cache_folder() / name
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    cache_folder().chmod(0o777)
    return cache_folder()


@pytest.fixture
def open_umask():
    """Without a umask, everyone may read and write what is made."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_pickles_of_the_compiler_are_read_from_a_private_folder(cache, monkeypatch, open_umask):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    use_private_compile_cache()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == cache / "torch-compile"
    assert (mode(cache), mode(folder)) == (0o700, 0o700)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/chosen")
    use_private_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/chosen"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_copy_of_a_remote_run_is_private(cache, tmp_path, open_umask):
    run = light_run(Remote(tmp_path / "store"))
    assert any(path.name == "tokenizer.json" for path in (cache / "runs").rglob("*"))
    assert (mode(cache), mode(cache / "runs")) == (0o700, 0o700)
    cache.chmod(0o777)
    with scratch_workspace(Workspace(run.store, run.name)) as scratch:
        folder = scratch.folder("checkpoints")
        (outer,) = (p for p in folder.parents if p.name.startswith("scratch-"))
        assert (mode(outer), mode(cache)) == (0o700, 0o700)


def test_the_shard_cache_is_private(cache, open_umask):
    ShardCache(default_folder(), 1).close()
    assert mode(cache / "shards") == 0o700


def folder_of_traces():
    """Return where steps are remembered, but for the tests, which have a folder of their own."""
    spec = importlib.util.find_spec("pion.train.memory_trace.remembered")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._folder()


def test_what_a_step_needs_is_remembered_in_a_private_folder(cache, open_umask):
    assert [mode(folder_of_traces()), mode(cache)] == [0o700] * 2


def test_the_lock_of_a_rental_is_private(cache, open_umask):
    with rental_lock("pion-demo") as try_lock:
        assert try_lock()
        assert mode(cache / "watch-pion-demo.lock") == 0o600
    assert mode(cache) == 0o700


def test_the_folder_of_a_proof_is_private(cache, open_umask):
    with Place() as place:
        assert [mode(p) for p in (cache, place.folder, place.temporary)] == [0o700] * 3


def test_the_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(BadInput, match=r"cache/pion belongs to .* Set XDG_CACHE_HOME"):
        Workspace(Remote(tmp_path / "store"), "demo")
    with pytest.raises(BadInput, match=r"cache/pion/shards belongs to "):
        ShardCache(default_folder(), 1)
    with pytest.raises(BadInput, match=r"cache/pion belongs to "):
        folder_of_traces()
    with pytest.raises(BadInput, match=r"cache/pion belongs to "), rental_lock("pion-demo"):
        pass


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_a_store_follows_the_umask_so_that_a_group_can_share_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        light_run(FileStore(tmp_path / "store"))
    finally:
        os.umask(before)
    everything = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    folders = {mode(path) for path in everything if path.is_dir()}
    files = {mode(path) for path in everything if path.is_file()}
    assert folders == {0o777 & ~umask}
    assert files == {0o666 & ~umask}
