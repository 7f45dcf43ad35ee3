"""`pion report`: write a run's report.html again from its store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pion.errors import BadInput
from pipeline.report.of_run import write_run_report
from pipeline.state.find_run import read_run
from pipeline.state.recorded_job import recorded_job


def rewrite_report(run: str, *, as_json: bool) -> int:
    """Write report.html of a run again from its store, and print its path.

    The report of a remote run is also written to the working directory.
    """
    state, head = read_run(run)
    job = recorded_job(state, head)
    if job is None:
        raise BadInput(f"run {state.name} has no record of its job, so there is nothing to report")
    path = write_run_report(job, state)
    if state.store.local_path(state.name) is None:
        path = Path(shutil.copyfile(path, f"{state.name}-report.html"))
    print(json.dumps({"report": str(path)}) if as_json else path)
    return 0
