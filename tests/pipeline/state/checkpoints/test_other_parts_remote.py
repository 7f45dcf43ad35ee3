"""Parts in a store that is not a folder: the copies on this machine, and ranks on two machines."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pion.errors import PionError
from pipeline.state.checkpoints import other_parts
from pipeline.state.checkpoints.layout import MANIFEST
from pipeline.state.checkpoints.restore import FoundCheckpoint, load_folder, newest_good
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.uploader import Uploader
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from pipeline.state.workspace import Workspace
from pipeline.training import saved_here as saved_here_module
from pipeline.training.saved_here import saved_here
from pipeline.training.train_request import Group
from pipeline.training.watchdog import Watchdog
from tests.pipeline.state.checkpoints.test_other_parts import (
    DIGEST,
    RUN,
    STAGE,
    Saver,
    has,
    no_commit,
    saver,
)
from tests.support.hub_server import USER, hub_server
from tests.support.in_process_uploader import InProcessUploader
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.soak


@pytest.fixture
def folder(tmp_path: Path, s3_store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that names an empty store in a bucket, and an empty cache."""
    (tmp_path / "store").write_text(s3_store)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def in_bucket(folder: Path) -> Any:
    """Return what uploads to the store of the test."""
    return InProcessUploader(open_store((folder / "store").read_text()))


def found_here(folder: Path) -> FoundCheckpoint:
    """Return what this machine would resume from."""
    run = RunState(open_store((folder / "store").read_text()), RUN)
    head = run.read()
    assert head is not None
    return newest_good(Workspace(run.store, RUN), head, STAGE, DIGEST)


def leave_uncommitted(one: Saver, rank: int) -> None:
    """Save step 1, and step 2 without its commit."""
    one.save(1)
    if rank == 0:
        no_commit(one)
    one.not_saved(2)


# ---------------------------------------------------------------- one machine


def save_without_commit(rank: int, folder: Path) -> None:
    with saver(folder, rank, 2, in_bucket(folder)) as one:
        leave_uncommitted(one, rank)


def test_a_restart_on_the_machine_of_all_ranks_continues_from_its_copy(folder: Path) -> None:
    run_ranks(save_without_commit, folder, 2)
    found = found_here(folder)
    assert found.folder is not None
    assert not found.listed
    assert has(load_folder(found.folder), 2)
    (found.folder / "optimizer-2-of-2.safetensors").unlink()
    found = found_here(folder)
    assert found.listed
    assert found.folder is not None
    assert has(load_folder(found.folder), 1)


# ---------------------------------------------------------------- commits of a repository


def save_in_a_repository(rank: int, folder: Path) -> None:
    uploader = Uploader(Snapshot(), (folder / "store").read_text())
    with saver(folder, rank, 2, uploader) as one:
        one.save(1)
        one.save(2)


def test_one_commit_has_the_parts_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server() as hub:
        hub.add_repo(f"{USER}/state")
        hub.use(monkeypatch, tmp_path / "hf")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (tmp_path / "store").write_text(f"hf://{USER}/state")
        run_ranks(save_in_a_repository, tmp_path, 2)
        shutil.rmtree(tmp_path / "cache")
        found = found_here(tmp_path)
        assert found.folder is not None
        assert has(load_folder(found.folder), 2)


# ---------------------------------------------------------------- two machines


def go_elsewhere(rank: int, folder: Path, last: int) -> None:
    """Let the last two of the ranks be on another machine, with another cache."""
    if rank >= last - 2:
        for module in (other_parts, saved_here_module):
            module.machine = lambda: "another machine"  # type: ignore[attr-defined]
        os.environ["XDG_CACHE_HOME"] = str(folder / "elsewhere")


def save_on_two_machines(rank: int, folder: Path) -> None:
    go_elsewhere(rank, folder, 3)
    with saver(folder, rank, 3, in_bucket(folder)) as one:
        leave_uncommitted(one, rank)
        copies = [path for path in folder.glob("*/pion/runs/**/*") if path.is_file()]
        assert [path for path in copies if path.name == MANIFEST] == []
        found, saved = FoundCheckpoint(None, None, []), None
        if rank == 0:
            found = found_here(folder)
            assert found.folder is not None
            saved = load_folder(found.folder)
        loaded = saved_here(context_of(rank, folder), found, saved)
        assert has(loaded, 1)
        where = "elsewhere" if rank else "cache"
        assert loaded.folder.is_relative_to(folder / where)


def context_of(rank: int, folder: Path) -> Any:
    run = RunState(open_store((folder / "store").read_text()), RUN)
    return SimpleNamespace(
        group=Group(rank, 3, distributed=True),
        run=run,
        workspace=Workspace(run.store, RUN),
        watchdog=Watchdog(print),
        patiently=lambda work: work(),
    )


def test_each_machine_downloads_what_the_store_has_and_keeps_no_copy_of_parts(
    folder: Path,
) -> None:
    run_ranks(save_on_two_machines, folder, 3)


def resume_what_one_machine_has(rank: int, folder: Path) -> None:
    with saver(folder, rank, 3, in_bucket(folder)) as one:
        leave_uncommitted(one, rank)
        go_elsewhere(rank, folder, 3)
        found = found_here(folder) if rank == 0 else FoundCheckpoint(None, None, [])
        assert found.listed == (rank > 0)
        with pytest.raises(PionError, match="only the machine of worker 0 has it"):
            saved_here(context_of(rank, folder), found, None)


def test_a_copy_that_another_machine_lacks_is_refused_on_every_rank(folder: Path) -> None:
    run_ranks(resume_what_one_machine_has, folder, 3)
