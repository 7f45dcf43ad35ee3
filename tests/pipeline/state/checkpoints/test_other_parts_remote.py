"""Parts in a repository, and in a bucket from which ranks on two machines resume."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pion.errors import PionError
from pipeline.state.checkpoints import other_parts
from pipeline.state.checkpoints.restore import FoundCheckpoint, load_folder
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.uploader import Uploader
from pipeline.state.stores import open_store
from pipeline.training import saved_here as saved_here_module
from pipeline.training.saved_here import saved_here
from tests.pipeline.state.checkpoints.test_other_parts import (
    Saver,
    has,
    no_commit,
    saver,
)
from tests.pipeline.state.checkpoints.test_other_parts_outage import context_of, found_in
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


def leave_uncommitted(one: Saver, rank: int) -> None:
    """Save step 1, and step 2 without its commit."""
    one.save(1)
    if rank == 0:
        no_commit(one)
    one.not_saved(2)


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
        found = found_in(open_store(f"hf://{USER}/state"))
        assert found.folder is not None
        assert has(load_folder(found.folder), 2)


def resume_what_one_machine_has(rank: int, folder: Path) -> None:
    store = open_store((folder / "store").read_text())
    uploader: Any = InProcessUploader(store)
    with saver(folder, rank, 3, uploader) as one:
        leave_uncommitted(one, rank)
        if rank:  # on another machine, with another cache
            for module in (other_parts, saved_here_module):
                module.machine = lambda: "another machine"  # type: ignore[attr-defined]
            os.environ["XDG_CACHE_HOME"] = str(folder / "elsewhere")
        found = FoundCheckpoint(None, None, []) if rank else found_in(store)
        assert found.listed == (rank > 0)
        with pytest.raises(PionError, match="only the machine of worker 0 has it"):
            saved_here(context_of(rank, 3, store), found, None)


def test_a_copy_that_another_machine_lacks_is_refused_on_every_rank(folder: Path) -> None:
    run_ranks(resume_what_one_machine_has, folder, 3)
