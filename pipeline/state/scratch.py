"""Temporary copies of a run's files, to inspect or pass on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.machine.folders import private_cache_folder
from pipeline.state.workspace import COPIES, Workspace


@contextlib.contextmanager
def scratch_workspace(run_workspace: Workspace) -> Iterator[Workspace]:
    """Yield a temporary workspace of the same run. If the store is on this machine, yield its own.

    The temporary workspace is on the disk with the copies of remote runs, because /tmp may be
    memory.
    """
    if not run_workspace.remote:
        yield run_workspace
        return
    root = private_cache_folder(COPIES)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=root) as folder:
        yield Workspace(run_workspace.store, run_workspace.run, Path(folder))
