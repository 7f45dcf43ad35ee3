"""Temporary copies of a run's files, to inspect or pass on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.state.workspace import Workspace, default_root


@contextlib.contextmanager
def scratch_workspace(run_workspace: Workspace) -> Iterator[Workspace]:
    """Yield a temporary workspace of the same run. If the store is on this machine, yield its own.

    The temporary workspace is on the disk with the copies of remote runs, because /tmp may be
    memory.
    """
    if not run_workspace.remote:
        yield run_workspace
        return
    root = default_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=root) as folder:
        yield Workspace(run_workspace.store, run_workspace.run, Path(folder))
