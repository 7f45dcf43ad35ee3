"""Writes a run's report.html from the run's store."""

from __future__ import annotations

from pathlib import Path

from pipeline.job import Job
from pipeline.report.history import read_history
from pipeline.report.page import write_report
from pipeline.state.run_state import RunState
from pipeline.state.workspace import Workspace

REPORT = "report.html"


def write_run_report(job: Job, run: RunState) -> Path:
    """Write `report.html` into the folder of `run` and return its path on this machine.

    A remote store gets a copy. Raises StoreError.
    """
    workspace = Workspace(run.store, run.name)
    path = write_report(workspace.folder(REPORT), read_history(job, run))
    if workspace.remote:
        run.store.write(run.key(REPORT), path)
        run.store.flush()
    return path
