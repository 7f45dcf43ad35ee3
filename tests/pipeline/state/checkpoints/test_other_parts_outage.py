"""Parts in a store that can't be reached: what the machines of the ranks have then."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pion.errors import Fenced
from pipeline.state.checkpoints import other_parts
from pipeline.state.checkpoints.layout import MANIFEST
from pipeline.state.checkpoints.restore import FoundCheckpoint, load_folder, newest_good
from pipeline.state.checkpoints.uploader import WRITE, Saved, SaveRequest, UploaderDied
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, Store, StoreError
from pipeline.state.stores.base import Data
from pipeline.state.workspace import Workspace
from pipeline.training import saved_here as saved_here_module
from pipeline.training.saved_here import saved_here
from pipeline.training.train_request import Group
from pipeline.training.watchdog import Watchdog
from tests.pipeline.state.checkpoints.test_other_parts import (
    DIGEST,
    RUN,
    STAGE,
    has,
    saver,
)
from tests.support.in_process_uploader import InProcessUploader
from tests.support.ranks import run_ranks
from tests.support.waiting import wait_until


class Remote(FileStore):
    """A store on another machine. While it is `down`, nothing can be uploaded."""

    down = False

    def local_path(self, key: str) -> None:
        return None

    def write(self, key: str, data: Data) -> None:
        if self.down and "/checkpoints/" in key:
            raise StoreError("write", key, "no answer", outage=True)
        super().write(key, data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def found_here(folder: Path) -> FoundCheckpoint:
    return found_in(Remote(folder / "runs"))


def found_in(store: Store) -> FoundCheckpoint:
    """Return what this machine would resume from."""
    run = RunState(store, RUN)
    head = run.read()
    assert head is not None
    return newest_good(Workspace(run.store, RUN), head, STAGE, DIGEST)


class DiesWriting(InProcessUploader):
    """An uploader whose process is killed before it has written anything."""

    def save(self, request: SaveRequest) -> Saved:
        assert request.half == WRITE
        raise UploaderDied("save", request.key, "exit code -9")


def save_in_an_outage(rank: int, folder: Path) -> None:
    store = Remote(folder / "runs")
    with saver(folder, rank, 2, InProcessUploader(store)) as one:
        one.save(1)
        store.down = rank == 1  # one part reaches the store
        outage = one.not_saved(2)
        assert rank or (outage is not None and "no answer" in str(outage))
        if rank == 1:
            one.uploader.__class__ = DiesWriting
        for step in (3, 4):
            outage = one.not_saved(step)
            assert rank or isinstance(outage, UploaderDied)
        if rank == 0:
            copy = one.checkpointer.local_copy()
            assert copy is not None
            assert copy.name.startswith("2-")


def test_after_an_outage_a_restart_continues_from_the_newest_whole_copy_on_the_machine(
    folder: Path,
) -> None:
    run_ranks(save_in_an_outage, folder, 2)
    found = found_here(folder)
    assert not found.listed
    assert found.folder is not None
    assert has(load_folder(found.folder), 2)
    (found.folder / "optimizer-2-of-2.safetensors").unlink()
    found = found_here(folder)
    assert found.listed
    assert found.folder is not None
    assert has(load_folder(found.folder), 1)


def save_after_an_outage(rank: int, folder: Path) -> None:
    store = Remote(folder / "runs")
    with saver(folder, rank, 2, InProcessUploader(store)) as one:
        store.down = True
        one.not_saved(1)
        store.down = False
        one.save(1)


def test_after_an_outage_the_same_step_is_saved_whole(folder: Path) -> None:
    run_ranks(save_after_an_outage, folder, 2)
    found = found_here(folder)
    assert found.listed
    assert found.folder is not None
    assert has(load_folder(found.folder), 1)


def lose_the_run_while_writing(rank: int, folder: Path) -> None:
    with saver(folder, rank, 2, InProcessUploader(Remote(folder / "runs"))) as one:
        one.save(1)
        upload = one.uploader.save

        def loses(request: SaveRequest) -> Saved:
            one.claim._fenced = Fenced("another process owns the run")
            return upload(request)

        if rank == 0:
            one.uploader.save = loses
        one.begin(2)
        if one.own is not None:
            return one.own._join()
        assert one.checkpointer._thread is not None
        one.checkpointer._thread.join()
        with pytest.raises(Fenced):
            one.checkpointer.wait()
        one.claim._fenced = None  # else closing raises it again


def test_no_rank_uploads_its_part_for_a_run_that_another_process_owns_by_now(folder: Path) -> None:
    run_ranks(lose_the_run_while_writing, folder, 2)
    found = {
        entry.key.split("/")[3] for entry in Remote(folder / "runs").list(f"{RUN}/checkpoints/")
    }
    assert found == {"1-1"}


def lose_the_run_while_another_rank_uploads(rank: int, folder: Path) -> None:
    """Rank 1 uploads until rank 0 has closed everything."""
    begun, closed = folder / "begun", folder / "closed"
    with saver(folder, rank, 2) as one:
        upload = one.uploader.save

        def slow(request: SaveRequest) -> Saved:
            begun.touch()
            wait_until(closed.exists, "rank 0 closes")
            return upload(request)

        if rank == 1:
            one.uploader.save = slow
        one.begin(1)
        if one.own is not None:
            return one.own._join()
        wait_until(begun.exists, "rank 1 uploads")
        one.claim._lose(None)
        with pytest.raises(Fenced):
            one.checkpointer.close()
        assert one.others is not None
        one.others.close()
        closed.touch()
        os._exit(0)  # as its worker is ended


def test_rank_0_does_not_wait_for_uploads_of_a_run_that_another_process_owns(folder: Path) -> None:
    run_ranks(lose_the_run_while_another_rank_uploads, folder, 2)
    assert (folder / "closed").exists()


# ---------------------------------------------------------------- several machines


def start_three_times(rank: int, folder: Path) -> None:
    """Two ranks, which can't tell their machines, restart after each of three saves."""
    for module in (other_parts, saved_here_module):
        module.machine = lambda: ""  # type: ignore[attr-defined]
    if rank:
        os.environ["XDG_CACHE_HOME"] = str(folder / "elsewhere")
    store = Remote(folder / "runs")
    with saver(folder, rank, 2, InProcessUploader(store)) as one:
        for step in (1, 2, 3):
            one.save(step)
            found, saved = FoundCheckpoint(None, None, []), None
            if rank == 0:
                assert list((folder / "cache").rglob(MANIFEST)) == []  # a part is elsewhere
                found = found_here(folder)
                assert found.entry is not None
                assert found.folder is not None
                saved = load_folder(found.folder)
                if step == 1:
                    one.claim.finish_stage("sft", DIGEST, {}, found.entry.key)
            loaded = saved_here(context_of(rank, 2, store), found, saved)
            assert has(loaded, step)
            assert loaded.folder.is_relative_to(folder / ("elsewhere" if rank else "cache"))


def context_of(rank: int, count: int, store: Store) -> Any:
    return SimpleNamespace(
        group=Group(rank, count, distributed=True),
        run=RunState(store, RUN),
        workspace=Workspace(store, RUN),
        watchdog=Watchdog(print),
        patiently=lambda work: work(),
    )


def test_each_machine_downloads_the_checkpoint_and_keeps_only_what_it_needs(folder: Path) -> None:
    run_ranks(start_three_times, folder, 2)
    copies = (folder / "elsewhere").glob(f"pion/runs/*/{RUN}/checkpoints/{STAGE}/*")
    assert {path.name.partition("-")[0] for path in copies} == {"1", "3"}
