"""Writes a run's report.html from the run's store."""

from __future__ import annotations

from pathlib import Path

from pion.errors import BadInput, no_room
from pipeline.job import Job
from pipeline.report.history import read_history
from pipeline.report.page import write_report
from pipeline.state.run_state import RunState
from pipeline.state.workspace import Workspace

REPORT = "report.html"


def write_run_report(job: Job, run: RunState) -> Path:
    """Write `report.html` into the folder of `run` and return its path on this machine.

    A remote store gets a copy. Raises StoreError, and BadInput if this machine can't write it.
    """
    workspace = Workspace(run.store, run.name)
    history = read_history(job, run)
    try:
        path = write_report(workspace.folder(REPORT), history)
    except OSError as error:
        reason = no_room(error, workspace.folder(REPORT)) or error.strerror or error
        raise BadInput(
            f"{workspace.folder(REPORT)}: can't write the report ({reason}). The "
            f"run is safe in {run.url}. Free some space, or check who owns the folder."
        ) from error
    if workspace.remote:
        run.store.write(run.key(REPORT), path)
        run.store.flush()
    return path
